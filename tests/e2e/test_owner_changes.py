"""The owner of a session dies, or stands still beyond its lease, under a push: the push goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from svc.client import LookbackClient, LookbackError, PushEvent, PushReconnecting, SessionSettings
from svc.registry.connection import Connection
from svc.registry.errors import LeaseHeldError
from svc.registry.leases import Leases
from svc.registry.process import this_process
from svc.registry.root import read_root_id
from tests.e2e.asking import ask_all
from tests.e2e.running import SMALL
from tests.e2e.test_kill import FPS, Log, film
from tests.e2e.videos import Pictures, push
from tests.svc.ingest.calls import Client, images, open_images
from tests.svc.ingest.processes import START_TIMEOUT_S, IngestProcess
from tests.svc.ingest.stored import assert_same, read_stored
from tests.svc.registry.redis_server import RedisServer

_SHORT_LEASES = """
import sys
import svc.registry.leases
svc.registry.leases.LEASE_S = 3.0
from svc.ingest.process import main
sys.exit(main())
"""


class _QaProcess(IngestProcess):
    """The process that answers."""

    async def ready(self) -> _QaProcess:
        assert self._process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise AssertionError((await self.ended())[1])
        self.address = json.loads(line)["address"]
        return self


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Two processes that watch and one that answers, over one root and one Redis."""

    data: Path
    redis: RedisServer
    owner: IngestProcess
    other: IngestProcess
    qa: IngestProcess


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as running:
        yield running


@pytest_asyncio.fixture
async def group(tmp_path: Path, tiny_path: Path, redis: RedisServer) -> AsyncIterator[_Group]:
    """All of them ready."""
    shm = tmp_path / "shm"
    shm.mkdir()
    values: dict[str, Any] = {
        **SMALL,
        "model": tiny_path,
        "data_dir": tmp_path / "store",
        "shm_dir": shm,
        "ingest_port": 0,
        "qa_port": 0,
        "redis_url": redis.url,
        "units_per_pass": 1,
    }
    run = ["-c", _SHORT_LEASES]
    started: list[IngestProcess] = []
    try:
        started.append(await IngestProcess.start(values, arguments=run))
        await started[0].ready()  # makes the root
        started.append(await IngestProcess.start(values, arguments=run))
        started.append(await _QaProcess.start(values, arguments=["-m", "svc.qa"]))
        for process in started[1:]:
            await process.ready()
        yield _Group(
            data=tmp_path / "store", redis=redis, owner=started[0], other=started[1], qa=started[2]
        )
    finally:
        for process in started:
            await process.stop()


async def _dies(group: _Group) -> None:
    group.owner.kill()


async def _stands_still(group: _Group) -> None:
    """Until its lease has run out and another has been given."""
    os.kill(group.owner.pid, signal.SIGSTOP)
    root_id = read_root_id(group.data)
    assert root_id is not None
    connection = Connection(group.redis.url, timeout_s=20.0)
    third = this_process("ingest", root_id=root_id, address="third.example:1")
    leases = Leases(connection, third, lease_s=60.0)
    try:
        while True:
            try:
                lease = await leases.acquire("cam", floor_epoch=0)
            except LeaseHeldError as error:
                await asyncio.sleep(error.wait_s)
            else:
                break
        await leases.release(lease)
    finally:
        await connection.close()
    os.kill(group.owner.pid, signal.SIGCONT)


class _Pusher:
    """Pushes by way of a process that does not have the session, and is left to get over it all."""

    def __init__(self, group: _Group) -> None:
        self._group = group
        self.log = Log()
        self.reasons: list[str] = []
        """Why it had to call again, in order."""
        self.first_owner = ""

    async def push(self, client: LookbackClient, frames: list[tuple[float, int]]) -> None:
        """The owner has it already, from a call that ends once the client has been sent there."""
        owner = Client(self._group.owner.address)
        call = await owner.open(open_images("cam"))
        await call.send(images([frames[0][0]]))
        await call.until_visible(1)
        self.first_owner, _ = _lease(self._group)
        async for event in client.push("cam", Pictures(frames=frames)):
            self._note(event)
            if isinstance(event, PushReconnecting) and len(self.reasons) == 1:
                assert event.error.metadata["address"] == self._group.owner.address
                call.cancel()
        await owner.close()

    def _note(self, event: PushEvent) -> None:
        if isinstance(event, PushReconnecting):
            assert isinstance(event.error, LookbackError)
            self.reasons.append(event.error.reason)
        self.log.note(event)


def _lease(group: _Group) -> tuple[str, int]:
    """Who has the session, as Redis says it, and under which epoch."""
    fields = group.redis.admin().hgetall("lookback:{cam}:session")
    return str(fields["owner"]), int(fields["epoch"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what_happens", "told"),
    [(_dies, {"CONNECTION_LOST", "UNREACHABLE"}), (_stands_still, {"LEASE_LOST"})],
)
async def test_a_push_goes_on_when_its_owner_dies_or_stands_still(
    group: _Group, what_happens: Callable[[_Group], Awaitable[None]], told: set[str]
) -> None:
    frames = film(480)
    pusher = _Pusher(group)
    async with LookbackClient(group.other.address, group.qa.address) as client:
        await client.create_session("cam", settings=SessionSettings(sample_fps=FPS))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pusher.push(client, frames))
            await pusher.log.more_visible(20)
            owner, epoch = _lease(group)
            assert owner == pusher.first_owner != ""
            assert pusher.log.finished is None
            await what_happens(group)
        assert pusher.reasons[0] == "SESSION_ELSEWHERE"
        assert told & set(pusher.reasons[1:]), pusher.reasons
        assert _lease(group)[1] > epoch
        assert pusher.log.acknowledged_count == len(frames) // 2
        await push(client, "peace", frames, fps=FPS)
        assert_same(read_stored(group.data, "cam"), read_stored(group.data, "peace"))
        for when in ({}, {"asked_at_s": frames[100][0]}, {"asked_at_s": frames[-60][0]}):
            ours, theirs = [await ask_all(client, name, **when) for name in ("cam", "peace")]
            for kind in ours:
                ours[kind].assert_near(theirs[kind])
