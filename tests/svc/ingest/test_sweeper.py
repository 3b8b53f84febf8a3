"""Sessions that nobody pushes to: what is old by both witnesses goes, and only that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from kvstore.diskuse import used_bytes
from kvstore.floor import Floor
from kvstore.retention import expired_count
from kvstore.trimming import StoredSegment, stored_segments
from kvstore.verify import verify_store
from svc.daemon_threads import DaemonThreads
from svc.ingest import idle_times
from svc.ingest.app import App
from svc.ingest.idle_times import IdleTimes
from svc.ingest.ownership import AlwaysOwned
from svc.rpc.errors import Reason, RequestError
from tests.svc.ingest.calls import FINISH, Client, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.registry.redis_server import RedisServer

_RETAIN_S = 600.0
_STEP_S = 300.0


class Clocks:
    """The wall clock, which anybody may set, and the one that only runs."""

    def __init__(self) -> None:
        self.wall_s = 1.7e9
        self.boot_s = 1000.0

    def pass_s(self, duration_s: float) -> None:
        """Let time pass for both."""
        self.wall_s += duration_s
        self.boot_s += duration_s


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    both = Clocks()
    # Not of the whole process: gRPC's deadlines go by the real one.
    for module in ("kvstore.blocklog", "kvstore.freeing", "svc.ingest.idle_sessions"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(time=lambda: both.wall_s))
    monkeypatch.setattr(idle_times, "boot_time_s", lambda: both.boot_s)
    return both


@dataclass
class Swept:
    """A server with small segments, which sweeps when a test says so."""

    client: Client
    clocks: Clocks
    root: Path

    @property
    def app(self) -> App:
        server = self.client.server
        assert server is not None
        assert server._app is not None
        return server._app

    async def sweep(self) -> None:
        await self.app.sweeper.sweep(DaemonThreads("sweep"))

    async def age(self, duration_s: float) -> None:
        """Let time pass under a server that sweeps every five minutes."""
        while duration_s > 0:
            step_s = min(_STEP_S, duration_s)
            self.clocks.pass_s(step_s)
            duration_s -= step_s
            await self.sweep()

    async def create(self, session_id: str, **keeping: Any) -> None:
        await self.client.sessions("CreateSession", session_id=session_id, keeping=keeping)

    async def push(self, session_id: str, times_s: list[float], *, finish: bool = False) -> None:
        """Push pictures to an empty session, ten seconds apart by the wall clock."""
        call = await self.client.open(open_images(session_id))
        for count, time_s in enumerate(times_s, start=1):
            await call.send_all([images([time_s])])
            await call.until_visible(count)
            self.clocks.pass_s(10.0)
        await (call.send(FINISH) if finish else call.half_close())
        await call.rest()
        await self.sweep()  # which sees it idle from now on

    async def stats(self, session_id: str) -> Any:
        return (await self.client.sessions("GetSession", session_id=session_id)).session.stats

    async def sessions(self) -> list[str]:
        page = await self.client.sessions("ListSessions")
        return [session.session_id for session in page.sessions]


@pytest_asyncio.fixture
async def swept(start: StartServer, values: dict[str, Any], clocks: Clocks) -> AsyncIterator[Swept]:
    client = await start(retain_s=_RETAIN_S, window_tokens=18, block_span_s=10.0)
    yield Swept(client=client, clocks=clocks, root=values["data_dir"])


def every_10_s(count: int, *, start_s: float = 0.0) -> list[float]:
    return [start_s + 10.0 * index for index in range(count)]


async def test_a_live_session_left_alone_forgets_what_is_old_and_keeps_its_end(
    swept: Swept,
) -> None:
    await swept.create("cam")
    await swept.push("cam", every_10_s(40))
    await swept.sweep()
    assert (await swept.stats("cam")).dropped_unit_count == 0
    await swept.age(_RETAIN_S / 2)
    middle = await swept.stats("cam")
    # 300 s of idleness and 400 s of stream: what began more than 300 s before the end is too old.
    assert 0 < middle.dropped_unit_count < 40
    assert 60.0 <= middle.first_pts_s <= 130.0
    await swept.age(2 * _RETAIN_S)
    late = await swept.stats("cam")
    assert middle.dropped_unit_count < late.dropped_unit_count < 40
    assert late.last_durable_pts_s == 390.0
    assert await swept.sessions() == ["cam"]
    assert verify_store(swept.root).damage == ()
    # It goes on where it ended.
    call = await swept.client.open(open_images("cam"))
    assert call.opened.durable_pts_s == 390.0
    await call.send(images([400.0]), FINISH)
    await call.rest()
    assert read_durable_end(swept.root) == 400.0


def read_durable_end(root: Path) -> float:
    return stored_segments(root, "cam")[-1].last_pts_s


async def test_a_finished_session_of_which_nothing_is_young_goes_whole(swept: Swept) -> None:
    await swept.create("cam")
    await swept.push("cam", every_10_s(20), finish=True)
    await swept.age(_RETAIN_S - 30)
    assert await swept.sessions() == ["cam"]
    await swept.age(300)
    assert await swept.sessions() == []
    assert not list((swept.root / "sessions").iterdir())
    await swept.create("cam")  # its name is free again
    await swept.sweep()
    assert await swept.sessions() == ["cam"]


async def test_a_session_keeps_its_own_age(swept: Swept) -> None:
    await swept.create("ever", retain_s=float("inf"))
    await swept.create("short", retain_s=200.0)
    await swept.create("default")
    for name in ("ever", "short", "default"):
        await swept.push(name, every_10_s(5), finish=True)
    await swept.age(300)
    assert await swept.sessions() == ["default", "ever"]
    await swept.age(_RETAIN_S)
    assert await swept.sessions() == ["ever"]
    changed = {"session_id": "ever", "keeping": {"retain_s": 100.0}}
    await swept.client.sessions(
        "UpdateSession", session=changed, update_mask={"paths": ["keeping.retain_s"]}
    )
    await swept.sweep()
    assert await swept.sessions() == []


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_jump_of_the_wall_clock_drops_nothing_that_is_young(
    swept: Swept, start: StartServer, finish: bool, restarts: bool
) -> None:
    await swept.create("cam")
    await swept.push("cam", every_10_s(10), finish=finish)
    if restarts:
        await swept.client.close()
    swept.clocks.wall_s += 10 * 365 * 86400.0
    if restarts:
        swept.client = await start(retain_s=_RETAIN_S, window_tokens=18, block_span_s=10.0)
    await swept.age(300)
    assert (await swept.stats("cam")).dropped_unit_count == 0
    await swept.age(2 * _RETAIN_S)  # what has really become old goes
    assert await swept.sessions() == ([] if finish else ["cam"])


async def test_a_wall_clock_that_was_set_back_keeps_what_it_says_is_young(swept: Swept) -> None:
    await swept.create("cam")
    await swept.push("cam", every_10_s(40), finish=True)
    swept.clocks.wall_s -= 10 * 365 * 86400.0
    await swept.age(3 * _RETAIN_S)
    assert (await swept.stats("cam")).dropped_unit_count == 0


async def test_a_jump_of_the_streams_time_drops_nothing_that_was_written_just_now(
    swept: Swept,
) -> None:
    await swept.create("cam")
    await swept.push("cam", [*every_10_s(10), 1e9], finish=True)
    await swept.age(300)
    assert (await swept.stats("cam")).dropped_unit_count == 0


async def test_time_in_which_no_process_watched_does_not_count(
    swept: Swept, start: StartServer
) -> None:
    await swept.create("cam")
    await swept.push("cam", every_10_s(10), finish=True)
    await swept.age(300)
    await swept.client.close()
    swept.clocks.pass_s(30 * 86400.0)
    swept.client = await start(retain_s=_RETAIN_S, window_tokens=18, block_span_s=10.0)
    await swept.age(100)
    assert await swept.sessions() == ["cam"]  # 400 s were seen, whatever the calendar says
    await swept.age(400)
    assert await swept.sessions() == []  # and what was seen before the restart does count


@pytest.mark.parametrize("finish", [False, True])
async def test_a_pinned_span_stays_whatever_its_age(swept: Swept, finish: bool) -> None:
    await swept.create("cam")
    await swept.push("cam", every_10_s(40), finish=finish)
    await swept.client.sessions(
        "PinSpan", session_id="cam", span={"start_s": 205.0, "end_s": 215.0}
    )
    await swept.age(4 * _RETAIN_S)
    stats = await swept.stats("cam")
    assert 100.0 < stats.first_pts_s <= 200.0  # the frame that was on screen at 205 s
    assert stats.last_durable_pts_s == 390.0
    await swept.client.sessions(
        "UnpinSpan", session_id="cam", span={"start_s": 0.0, "end_s": 1000.0}
    )
    await swept.sweep()
    if finish:
        assert await swept.sessions() == []
    else:
        assert (await swept.stats("cam")).first_pts_s > 300.0


async def test_a_session_that_is_pushed_or_held_is_left_alone_and_not_waited_for(
    swept: Swept,
) -> None:
    await swept.create("cam")
    await swept.push("cam", every_10_s(40))
    call = await swept.client.open(open_images("cam"))
    await swept.age(4 * _RETAIN_S)
    assert (await swept.stats("cam")).dropped_unit_count == 0
    await call.half_close()
    await call.rest()
    async with swept.app.pushes.excluded("cam"):
        await asyncio.wait_for(swept.age(4 * _RETAIN_S), 30)
        assert (await swept.stats("cam")).dropped_unit_count == 0
    await swept.age(1)
    assert (await swept.stats("cam")).dropped_unit_count > 0


async def test_what_cannot_be_looked_at_keeps_no_other_from_its_turn(
    swept: Swept, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        await swept.create(name)
        await swept.push(name, every_10_s(10), finish=True)
    (swept.root / "sessions" / "a" / "session.json").write_bytes(b"{}")
    with caplog.at_level(logging.INFO):
        await swept.age(2 * _RETAIN_S)
    told = [r for r in caplog.records if r.message == "idle session left alone"]
    assert [record.__dict__["session"] for record in told] == ["a"]
    assert not (swept.root / "sessions" / "b").exists()
    assert (swept.root / "sessions" / "a").exists()


async def test_one_process_of_a_store_sweeps(
    swept: Swept, start: StartServer, values: dict[str, Any]
) -> None:
    await swept.sweep()
    assert IdleTimes.open(swept.root) is None
    other = await start(retain_s=_RETAIN_S)
    assert other.server is not None
    assert other.server._app is not None
    await other.server._app.sweeper.sweep(DaemonThreads("sweep"))
    assert other.server._app.sweeper._times is None
    await swept.client.close()
    await other.server._app.sweeper.sweep(DaemonThreads("sweep"))
    assert other.server._app.sweeper._times is not None


async def test_idle_sessions_that_drop_make_room_for_those_that_push_oldest_first(
    start: StartServer, values: dict[str, Any], clocks: Clocks
) -> None:
    root = values["data_dir"]
    client = await start(retain_s=1600.0, window_tokens=18, block_span_s=10.0)  # small segments
    swept = Swept(client=client, clocks=clocks, root=root)
    for name, on_full in (("first", 2), ("second", 2), ("kept", 1)):
        await swept.create(name, on_full=on_full)
        await swept.push(name, every_10_s(40), finish=True)
    await client.close()
    before = {name: len(stored_segments(root, name)) for name in ("first", "second", "kept")}
    first_bytes = sum(each.disk_bytes for each in stored_segments(root, "first"))
    used = used_bytes(root)
    budget = int((used - first_bytes / 2) / 0.85)
    swept.client = await start(disk_budget_bytes=budget, budget_high_fraction=0.86)
    await swept.sweep()
    left = {name: len(stored_segments(root, name)) for name in before}
    assert 1 <= left["first"] < before["first"]
    assert left["second"] == before["second"]
    assert left["kept"] == before["kept"]
    assert used_bytes(root) <= budget * 0.85
    await swept.sweep()
    assert {name: len(stored_segments(root, name)) for name in before} == left
    with pytest.raises(Refused):
        await swept.client.open(open_images("first"))  # finished


@pytest.mark.parametrize("finish", [False, True])
async def test_a_budget_that_is_made_smaller_holds_for_a_session_that_nobody_pushes_to(
    start: StartServer, values: dict[str, Any], clocks: Clocks, finish: bool
) -> None:
    root = values["data_dir"]
    client = await start(retain_s=1600.0, window_tokens=18, block_span_s=10.0)  # small segments
    swept = Swept(client=client, clocks=clocks, root=root)
    for name, on_full in (("given", 2), ("pinned", 2), ("kept", 1)):
        await swept.create(name, on_full=on_full)
        await swept.push(name, every_10_s(60), finish=finish)
        assert used_bytes(root / "sessions" / name) > 2**20
    await swept.client.sessions("PinSpan", session_id="pinned", span={"start_s": 0.0, "end_s": 1.0})
    before = {name: stored_segments(root, name) for name in ("given", "pinned", "kept")}
    for name in before:
        await swept.client.sessions(
            "UpdateSession",
            session={"session_id": name, "keeping": {"session_budget_bytes": 2**20}},
            update_mask={"paths": ["keeping.session_budget_bytes"]},
        )
    await swept.sweep()
    left = stored_segments(root, "given")
    assert 1 <= len(left) < len(before["given"])
    assert left == before["given"][-len(left) :]
    assert used_bytes(root / "sessions" / "given") <= 2**20
    assert used_bytes(root / "sessions" / "given") + before["given"][0].disk_bytes > 0.85 * 2**20
    assert stored_segments(root, "pinned") == before["pinned"]
    assert stored_segments(root, "kept") == before["kept"]
    await swept.sweep()
    assert stored_segments(root, "given") == left


async def test_what_is_too_old_and_what_is_beyond_a_budget_go_in_one_sweep(
    start: StartServer, values: dict[str, Any], clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    root = values["data_dir"]
    client = await start(retain_s=1600.0, window_tokens=18, block_span_s=10.0)  # small segments
    swept = Swept(client=client, clocks=clocks, root=root)
    await swept.create("cam", on_full=2)
    await swept.push("cam", every_10_s(60))
    await swept.client.sessions(
        "PinSpan", session_id="cam", span={"start_s": 589.0, "end_s": 590.0}
    )
    segments = stored_segments(root, "cam")
    await swept.client.sessions(
        "UpdateSession",
        session={
            "session_id": "cam",
            # The first segment is too old.
            "keeping": {
                "session_budget_bytes": 2**20,
                "retain_s": 590.0 - segments[0].last_pts_s - 1.0,
            },
        },
        update_mask={"paths": ["keeping.session_budget_bytes", "keeping.retain_s"]},
    )
    used = used_bytes(root / "sessions" / "cam")
    assert used - segments[0].disk_bytes > 2**20  # that alone is not enough
    caplog.set_level(logging.INFO)
    caplog.clear()
    await swept.sweep()
    assert caplog.messages.count("idle session let go of its oldest") == 2
    assert "idle session left alone" not in caplog.messages
    assert used_bytes(root / "sessions" / "cam") <= 2**20


class LostOwned(AlwaysOwned):
    """A session that another process may have by now."""

    def held(self) -> bool:
        """No more."""
        return False


async def test_nothing_is_deleted_of_a_session_whose_lease_was_lost(
    swept: Swept, caplog: pytest.LogCaptureFixture
) -> None:
    async def take(session_id: str) -> LostOwned:
        return LostOwned()

    await swept.create("cam")
    await swept.push("cam", every_10_s(20), finish=True)
    with pytest.raises(RequestError) as refused:
        await swept.app.changes.delete_owned("cam", LostOwned())
    assert refused.value.reason is Reason.LEASE_LOST
    take_ours, swept.app.sweeper._take = swept.app.sweeper._take, take
    caplog.set_level(logging.INFO)
    await swept.age(3 * _RETAIN_S)
    assert await swept.sessions() == ["cam"]
    assert "idle session left alone" in caplog.messages
    swept.app.sweeper._take = take_ours
    await swept.sweep()
    assert await swept.sessions() == []


def segment(number: int, last_pts_s: float, written_unix_s: float) -> StoredSegment:
    return StoredSegment(
        floor=Floor(first_segment=number),
        token_count=1,
        block_count=1,
        disk_bytes=4096,
        first_pts_s=last_pts_s - 1,
        last_pts_s=last_pts_s,
        written_unix_s=written_unix_s,
    )


@given(
    ages=st.lists(st.floats(0, 1000), min_size=1, max_size=8),
    idle_s=st.floats(0, 1000),
    wall_jump_s=st.floats(-1e9, 1e9),
    stream_jump_s=st.floats(0, 1e9),
    which=st.sampled_from(["wall", "stream", "neither"]),
)
def test_nothing_goes_that_is_younger_than_it_may_become_whatever_one_clock_does(
    ages: list[float], idle_s: float, wall_jump_s: float, stream_jump_s: float, which: str
) -> None:
    ages = sorted(ages, reverse=True)  # by the truth, at the session's newest unit
    now_unix_s = 1.7e9
    segments = [segment(index, -age, now_unix_s - idle_s - age) for index, age in enumerate(ages)]
    newest_pts_s = stream_jump_s if which == "stream" else 0.0
    count = expired_count(
        segments,
        retain_s=600.0,
        newest_pts_s=newest_pts_s,
        idle_s=idle_s,
        now_unix_s=now_unix_s + (wall_jump_s if which == "wall" else 0.0),
    )
    assert all(age + idle_s > 600.0 - 1e-3 for age in ages[:count])
    if which == "neither":
        assert not any(age + idle_s > 600.0 + 1e-3 for age in ages[count:])


def test_a_count_that_was_torn_begins_anew(tmp_path: Path, clocks: Clocks) -> None:
    def opened() -> IdleTimes:
        times = IdleTimes.open(tmp_path)
        assert times is not None
        return times

    times = opened()
    assert times.look({"a": "1"}) == {"a": 0.0}
    clocks.boot_s += 100
    assert times.look({"a": "1", "b": "1"}) == {"a": 100.0, "b": 0.0}
    clocks.boot_s += 50
    assert times.look({"a": "2", "b": "1"}) == {"a": 0.0, "b": 50.0}
    clocks.boot_s += 1e6  # it slept
    assert times.look({"a": "2", "b": "1"}) == {"a": 0.0, "b": 50.0}
    times.save()
    times.close()
    clocks.boot_s = 5.0  # another start of the machine
    times = opened()
    clocks.boot_s += 10
    assert times.look({"a": "2", "b": "1"}) == {"a": 10.0, "b": 60.0}
    times.save()
    times.close()
    path = tmp_path / "idle-times"
    path.write_bytes(path.read_bytes()[:-3])
    times = opened()
    assert times.look({"b": "1"}) == {"b": 0.0}
    times.close()


async def test_a_session_goes_from_the_registry_too_and_one_of_another_process_is_left_alone(
    start: StartServer, values: dict[str, Any], clocks: Clocks, tmp_path: Path
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as redis:
        settings = {
            "redis_url": redis.url,
            "retain_s": _RETAIN_S,
            "window_tokens": 18,
            "block_span_s": 10.0,
        }
        client, other = await start(**settings), await start(**settings)
        swept = Swept(client=client, clocks=clocks, root=values["data_dir"])
        for name in ("over", "taken"):
            await swept.create(name)
            await swept.push(name, every_10_s(20), finish=name == "over")
        call = await other.open(open_images("taken"))
        await swept.age(3 * _RETAIN_S)
        assert await swept.sessions() == ["taken"]
        assert (await swept.stats("taken")).dropped_unit_count == 0
        assert redis.admin().hget("lookback:{over}:session", "state") == "deleted"
        await call.half_close()
        await call.rest()
        while redis.admin().hget("lookback:{taken}:session", "owner"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await swept.age(3 * _RETAIN_S)
        assert (await swept.stats("taken")).dropped_unit_count > 0
        # Its lease was given back.
        again = await other.open(open_images("taken"))
        await again.half_close()
        await again.rest()
