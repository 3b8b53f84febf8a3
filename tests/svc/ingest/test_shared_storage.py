"""Two processes over one root that no lock of the kernel guards: a session's record has one writer.

Calls come to either process. What they change is changed where the session is owned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kvstore.reader import SessionReader
from kvstore.session import load_session
from svc.client import LookbackClient
from tests.svc.ingest.calls import FINISH, Client, IngestCall, Refused, images, open_images
from tests.svc.ingest.processes import IngestProcess
from tests.svc.registry.redis_server import RedisServer

_ON_SHARED_STORAGE = """
import sys
import time
from types import SimpleNamespace
import kvstore.session
import svc.ingest.changes
import svc.ingest.owners
svc.ingest.owners.root_is_locked = lambda root: False
kvstore.session.fcntl = SimpleNamespace(flock=lambda fd, how: None, LOCK_EX=None)
written = kvstore.session.update_session
def slowly(root, record):
    time.sleep(0.01)
    written(root, record)
kvstore.session.update_session = slowly
{mutation}
from svc.ingest.process import main
sys.exit(main())
"""
_ASKS_NOBODY = """
import asyncio
async def at_once(changes, session_id, work):
    return await asyncio.to_thread(work)
svc.ingest.changes.Changes._between_writes = at_once
"""

_PICTURE_COUNT = 300

Start = Callable[[str], Any]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as running:
        yield running


@pytest_asyncio.fixture
async def start_two(values: dict[str, Any], redis: RedisServer) -> AsyncIterator[Start]:
    """Starts the two, with the same mutation."""
    started: list[IngestProcess] = []
    settings = {
        **values,
        "redis_url": redis.url,
        "session_budget_bytes": 2**20 + 2**19,
        "on_full": "drop_oldest",
        "block_span_s": 2.0,
        "window_tokens": 32,
    }

    async def start(mutation: str = "") -> tuple[str, str]:
        run = ["-c", _ON_SHARED_STORAGE.format(mutation=mutation)]
        for _ in range(2):
            process = await IngestProcess.start(settings, arguments=run)
            started.append(await process.ready())
        return started[0].address, started[1].address

    yield start
    for process in started:
        await process.stop()


class _Changer:
    """Pins a moment, then unpins another, and so on; knows what is to be pinned in the end."""

    def __init__(self, client: LookbackClient) -> None:
        self._client = client
        self.pinned: set[tuple[float, float]] = set()
        self.newest_s = 0.0

    async def pin(self, start_s: float) -> None:
        """Pin a quarter of a second; a few moments stay pinned at a time, so the oldest may go."""
        span = (start_s, start_s + 0.25)
        while len(self.pinned) >= 2:
            oldest = min(self.pinned)
            await self._client.unpin_span("cam", *oldest)
            self.pinned.remove(oldest)
        changed = await self._client.pin_span("cam", *span)
        self.pinned.add(span)
        self.newest_s = start_s
        assert self.pinned <= {(each.start_s, each.end_s) for each in changed.session.pinned_spans}


async def _name_until(client: LookbackClient, done: asyncio.Event) -> str:
    """Name a session again and again, and return the last name."""
    name, count = "", 0
    while not done.is_set():
        count += 1
        name = f"name {count}"
        changed = await client.update_session("cam", display_name=name)
        assert changed.display_name == name
    return name


async def _push(call: IngestCall, changer: _Changer, done: asyncio.Event) -> None:
    """Push pictures, a few ahead of what is pinned: what is pinned longer would fill the budget."""
    try:
        for time in range(_PICTURE_COUNT):
            while (  # noqa: ASYNC110 - the two are told elsewhere, and often
                time >= max(call.opened.credit_item_count, call.progress.credit_item_count)
                or changer.newest_s < time - 20
            ):
                await asyncio.sleep(0.01)
            await call.send(images([float(time)]))
    finally:
        done.set()


def _check(root: Path, name: str, *changers: _Changer) -> None:
    record = load_session(root, "cam")
    pinned = set().union(*(changer.pinned for changer in changers))
    assert set(record.pinned_spans) == pinned
    assert record.settings["display_name"] == name


async def _pin_through_another_while_the_owner_trims(root: Path, a: str, b: str) -> None:
    owner = Client(a)
    await owner.create("cam")
    call = await owner.open(open_images("cam"))
    done = asyncio.Event()
    async with LookbackClient(a, a) as here, LookbackClient(b, b) as there:
        changer = _Changer(there)
        hearing = asyncio.create_task(call.rest())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_push(call, changer, done))
            naming = tasks.create_task(_name_until(here, done))
            seen_count = 0
            while not done.is_set():
                if call.progress.visible_unit_count > seen_count:
                    seen_count = call.progress.visible_unit_count
                    await changer.pin(float(seen_count - 1))
                await asyncio.sleep(0.01)
    await call.send(FINISH)
    await hearing
    await owner.close()
    _check(root, naming.result(), changer)
    reader = SessionReader.open(root, "cam")
    snapshot = reader.snapshot()
    reader.close()
    assert snapshot.first_unit > 0, "it never had to trim"
    first_pts_s = snapshot.first_pts_s[snapshot.first_unit]
    assert all(first_pts_s <= start_s for start_s, _ in changer.pinned)


async def _change_a_finished_session_through_both(root: Path, a: str, b: str) -> None:
    owner = Client(a)
    await owner.create("cam")
    call = await owner.open(open_images("cam"))
    await call.send_all([images([float(time)]) for time in range(4)])
    await call.send(FINISH)
    await call.rest()
    await owner.close()
    done = asyncio.Event()
    async with LookbackClient(a, a) as here, LookbackClient(b, b) as there:
        changers = _Changer(here), _Changer(there)

        async def change(changer: _Changer, start_s: float) -> None:
            for step in range(20):
                await changer.pin(start_s + step)

        async with asyncio.TaskGroup() as tasks:
            naming = tasks.create_task(_name_until(there, done))
            async with asyncio.TaskGroup() as changing:
                changing.create_task(change(changers[0], 0.0))
                changing.create_task(change(changers[1], 0.5))
            done.set()
    _check(root, naming.result(), *changers)


_SCENES = [_pin_through_another_while_the_owner_trims, _change_a_finished_session_through_both]


@pytest.mark.slow
@pytest.mark.parametrize("scene", _SCENES)
async def test_no_change_is_lost(start_two: Start, values: dict[str, Any], scene: Any) -> None:
    await scene(values["data_dir"], *await start_two(""))


@pytest.mark.slow
@pytest.mark.parametrize("scene", _SCENES)
async def test_changes_that_ask_nobody_are_caught(
    start_two: Start, values: dict[str, Any], scene: Any
) -> None:
    addresses = await start_two(_ASKS_NOBODY)
    with pytest.raises((AssertionError, ExceptionGroup)) as caught:
        await scene(values["data_dir"], *addresses)
    error = caught.value
    assert isinstance(error, AssertionError) or error.subgroup(AssertionError) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("UpdateSession", {"session": {"session_id": "cam", "display_name": "Yard"}}),
        ("PinSpan", {"session_id": "cam", "span": {"start_s": 0.0, "end_s": 1.0}}),
        ("UnpinSpan", {"session_id": "cam", "span": {"start_s": 0.0, "end_s": 1.0}}),
    ],
)
async def test_a_process_that_does_not_own_it_says_who_does(
    start_two: Start, values: dict[str, Any], method: str, fields: dict[str, Any]
) -> None:
    if method == "UpdateSession":
        fields = {**fields, "update_mask": {"paths": ["display_name"]}}
    a, b = await start_two("")
    owner, other = Client(a), Client(b)
    await owner.create("cam")
    call = await owner.open(open_images("cam"))
    await call.send(images([0.0]))
    await call.until_visible(1)
    before = load_session(values["data_dir"], "cam")
    with pytest.raises(Refused, match="SESSION_ELSEWHERE") as refused:
        await other.sessions(method, **fields)
    assert a in refused.value.message
    assert load_session(values["data_dir"], "cam") == before
    await owner.sessions(method, **fields)
    call.cancel()
    for client in (owner, other):
        await client.close()
