"""A session written on another machine: heard of within a moment, and complete without Redis."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from kvstore import tracking
from kvstore.control import _WORD_COUNT, ControlPage
from kvstore.format import PAGE_BYTES
from kvstore.triplewords import TripleWords
from svc.engine.model import LoadedModel
from svc.qa import following, sessions
from svc.registry.announcements import Announcement, Announcements
from svc.registry.connection import Connection
from svc.registry.leases import Lease, Leases
from svc.registry.sessions import SessionDirectory
from tests.svc.qa.bench import JOIN_S, Bench
from tests.svc.qa.service import LiveSession
from tests.svc.registry.conftest import process
from tests.svc.registry.redis_server import RedisServer


class FarPage(ControlPage):
    """The CTL page as another machine may see it: as it was when it was opened."""

    def __init__(self, fd: int, path: Path, session_hash: int, *, writable: bool) -> None:
        assert not writable
        self._map = mmap.mmap(-1, PAGE_BYTES)
        self._map[:] = os.pread(fd, PAGE_BYTES, 0)
        self._words = TripleWords(self._map, path, word_count=_WORD_COUNT)
        self._session_hash = session_hash
        self._boot = 1


@dataclass
class Far:
    """A writer, what it publishes, and an answerer of another machine."""

    bench: Bench
    session: LiveSession
    redis: RedisServer
    leases: Leases
    lease: Lease
    scans: Counter[str]

    async def seen(self) -> int:
        """How many units a question sees."""
        return (await self.bench.answer("far")).held_unit_count

    async def until_seen(self, unit_count: int) -> None:
        while await self.seen() < unit_count:  # noqa: ASYNC110 - questions tell
            await asyncio.sleep(0.02)

    def write(self, start: int, stop: int) -> None:
        self.session.push([float(second) for second in range(start, stop)])
        self.session.stream.flush()

    async def publish(self, start: int, stop: int) -> None:
        await self.leases.publish(
            self.lease, start_unit=start, stop_unit=stop, durable_pts_s=stop - 1.0
        )

    async def is_heard(self) -> None:
        """Waits until what is published is heard, at the latest after the next question."""
        await self.seen()
        lease = self.bench.sessions.lease("far")
        try:
            news = lease.session.news
            assert news is not None
            while not news.is_set():  # noqa: ASYNC110 - of a thread's event
                await asyncio.sleep(0.01)
        finally:
            lease.release()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as running:
        yield running


@pytest_asyncio.fixture
async def far(
    tmp_path: Path, model: LoadedModel, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Far]:
    store = tmp_path / "store"
    store.mkdir()
    session = LiveSession(store, model, "far")
    session.push([0.0, 1.0])
    session.stream.flush()
    monkeypatch.setattr(tracking, "ControlPage", FarPage)
    monkeypatch.setattr(following, "TRY_AGAIN_S", 0.05)
    monkeypatch.setattr(sessions, "LOOK_AT_LEAST_EVERY_S", 3600.0)
    scans: Counter[str] = Counter()
    real = tracking.scan_log

    def counted(*arguments: object, **named: object) -> object:
        scans["far"] += 1
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(tracking, "scan_log", counted)
    directory, writing = Connection(redis.url), Connection(redis.url)
    await SessionDirectory(directory).reserve("far", "root-a")
    await SessionDirectory(directory).created("far", "root-a")
    leases = Leases(writing, process("writer"), lease_s=60.0)
    lease = await leases.acquire("far", floor_epoch=0)
    bench = Bench(store, model, Announcements(directory, wait_s=0.1))
    yield Far(bench, session, redis, leases, lease, scans)
    assert bench.follower is not None
    await bench.follower.stop()
    await directory.close()
    await writing.close()
    bench.runner.stop()
    bench.thread.join(JOIN_S)
    bench.sessions.close()
    session.close()


async def test_what_is_announced_is_seen_and_no_question_reads_the_files(far: Far) -> None:
    await far.publish(0, 2)
    await far.is_heard()
    assert await far.seen() == 2
    scans = far.scans["far"]
    far.write(2, 6)
    for _ in range(5):
        assert await far.seen() == 2  # it was not told yet, and does not look
    assert far.scans["far"] == scans
    await far.publish(2, 6)
    await far.until_seen(6)
    assert far.scans["far"] == scans + 1
    for _ in range(5):
        assert await far.seen() == 6
    assert far.scans["far"] == scans + 1


async def test_without_redis_each_question_looks_itself_and_is_told_again_when_it_is_back(
    far: Far,
) -> None:
    await far.publish(0, 2)
    await far.is_heard()
    far.redis.kill()
    far.write(2, 6)
    await far.until_seen(6)
    far.write(6, 8)
    assert await far.seen() == 8
    far.redis.start()  # it has forgotten all
    far.lease = await far.leases.renew(far.lease) or far.lease
    await far.publish(0, 8)
    await far.is_heard()
    scans = far.scans["far"]
    assert await far.seen() == 8
    assert far.scans["far"] == scans
    far.write(8, 9)
    await far.publish(8, 9)
    await far.until_seen(9)


async def test_what_its_process_cannot_announce_is_seen_when_it_was_not_looked_at_for_long(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.publish(0, 2)
    await far.is_heard()
    far.write(2, 5)
    assert await far.seen() == 2
    monkeypatch.setattr(sessions, "LOOK_AT_LEAST_EVERY_S", 0.0)
    assert await far.seen() == 5


async def test_a_session_that_was_let_go_of_is_followed_no_more(far: Far) -> None:
    await far.publish(0, 2)
    await far.is_heard()
    assert far.bench.follower is not None
    (first,) = far.bench.follower._tasks
    far.bench.sessions.discard(first)
    await far.is_heard()
    (second,) = far.bench.follower._tasks
    assert second is not first
    assert await far.seen() == 2


async def test_what_it_cannot_make_sense_of_is_told_and_heard_of_again(
    far: Far, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Announcements.follow

    def garbled(self: Announcements, session_id: str) -> AsyncIterator[Announcement]:
        monkeypatch.setattr(Announcements, "follow", real)
        raise ValueError("no number")

    monkeypatch.setattr(Announcements, "follow", garbled)
    await far.publish(0, 2)
    await far.is_heard()
    assert "no number" in caplog.text
    far.write(2, 4)
    await far.publish(2, 4)
    await far.until_seen(4)
