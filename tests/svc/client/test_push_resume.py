"""Pushes over calls that are cut wherever they can be, and servers that go and come."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svc.client import (
    LiveSource,
    LookbackClient,
    LookbackError,
    PushFinished,
    PushGap,
    PushLeft,
    PushOpened,
    PushReconnecting,
    push_call,
)
from svc.client.tail import SentTail
from svc.video.frames import ChunkItem, ContainerMedia, ImageItem, Item, PacketItem, PacketMedia
from tests.svc.client.cuts import Failures
from tests.svc.client.material import ListSource, images, live, packets
from tests.svc.client.protocol_server import (
    ProtocolServer,
    StoredSession,
    served,
)
from tests.svc.client.pushing import NOTHING, pushed

STEPS = ("open", "opened", "images", "progress", "finish", "finished", "draining")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a reason is heard does not matter here: there is none."""
    monkeypatch.setattr(push_call, "_PAUSE_S", 0.0)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    cuts=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 6)), max_size=5),
    clean_end=st.booleans(),
    credit=st.integers(1, 9),
    durable_every=st.integers(1, 7),
    drain_after=st.none() | st.integers(1, 12),
    seekable=st.booleans(),
    key_every=st.integers(1, 6),
)
def test_a_cut_at_any_message_loses_nothing_and_repeats_nothing(
    cuts: list[tuple[str, int]],
    clean_end: bool,
    credit: int,
    durable_every: int,
    drain_after: int | None,
    seekable: bool,
    key_every: int,
) -> None:
    server = ProtocolServer()
    server.failures = Failures(cuts=list(cuts), clean_end=clean_end)
    server.credit, server.durable_every = credit, durable_every
    server.drain_after = drain_after
    media, items = PacketMedia(codec="h264"), packets(17, key_every)
    source = ListSource(items, media=media) if seekable else LiveSource(items=items, media=media)
    server.failures.cuts = [("packets" if s == "images" else s, n) for s, n in cuts]

    events = asyncio.run(pushed(server, source))

    assert server.sessions["s"].durable == [float(i) for i in range(17)]
    assert server.sessions["s"].finished
    assert isinstance(events[-1], PushFinished)
    assert events[-1].progress.durable_unit_count == 17
    assert not any(isinstance(event, PushGap) for event in events)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("clean_end", [False, True])
@pytest.mark.parametrize("live_source", [False, True])
async def test_each_kind_of_message_can_be_the_last_one(
    step: str, clean_end: bool, live_source: bool
) -> None:
    server = ProtocolServer()
    server.failures = Failures(cuts=[(step, 0)], clean_end=clean_end)
    server.drain_after = 5
    items = images(12)
    source = LiveSource(items=live(items)) if live_source else ListSource(items)
    events = await pushed(server, source)
    assert server.sessions["s"].durable == [float(i) for i in range(12)]
    assert isinstance(events[-1], PushFinished)
    reconnects = [event for event in events if isinstance(event, PushReconnecting)]
    assert len(reconnects) >= 1, "the cut was there to be noticed"
    assert not server.failures.cuts


@pytest.mark.parametrize("kind", ["images", "packets", "chunks"])
async def test_a_finish_by_another_hand_is_not_taken_for_ones_own(kind: str) -> None:
    """It is lost with its call and what was not durable, and an operator ends the session."""
    server = ProtocolServer()
    server.durable_every = 10
    server.failures.cuts = [("finish", 0)]
    server.finishes_when_cut = True
    if kind == "images":
        source = ListSource(images(12))
    elif kind == "packets":
        source = ListSource(packets(12, 4), media=PacketMedia(codec="h264"))
    else:
        source = ListSource([ChunkItem(data=b"0")], media=ContainerMedia())
    with pytest.raises(LookbackError) as caught:
        await pushed(server, source)
    assert caught.value.reason == "FINISH_UNKNOWN"
    if kind != "chunks":
        assert "video up to 9 s, and up to 11 s was sent" in caught.value.message
        assert len(server.sessions["s"].durable) == 10


@pytest.mark.parametrize(
    ("last_pts_s", "durable_pts_s", "whole"),
    [(11.9, 11.0, True), (12.0, 11.0, True), (12.1, 11.0, False), (0.5, None, False)],
)
def test_what_is_kept_ends_less_than_a_period_before_what_was_sent(
    last_pts_s: float, durable_pts_s: float | None, whole: bool
) -> None:
    tail = SentTail()
    tail.target_fps = 1.0
    for pts_s in (last_pts_s, 0.1):  # packets come in decoding order
        tail.add(PacketItem(pts_s=pts_s, data=b"", key_frame=True, discard=False))
    tail.add(PacketItem(pts_s=99.0, data=b"", key_frame=False, discard=True))
    progress = dataclasses.replace(NOTHING, durable_pts_s=durable_pts_s)
    with contextlib.nullcontext() if whole else pytest.raises(LookbackError):
        tail.check(progress)


async def test_a_server_that_drains_is_sent_no_more() -> None:
    """One item may be on its way when the order comes; the rest waits for the next call."""
    server = ProtocolServer()
    server.credit, server.drain_after = 1, 5
    await pushed(server, ListSource(images(40)))
    assert server.calls[0].count("images") in (5, 6)
    assert server.sessions["s"].durable == [float(i) for i in range(40)]


async def test_a_server_that_dies_of_the_same_frame_each_time_is_not_fed_it_for_ever() -> None:
    """It gets as far as before in each call, and no further: that is no progress."""
    server = ProtocolServer()
    server.durable_every = 1000
    server.failures.cuts = [("progress", 2)] * 100_000
    with pytest.raises(LookbackError, match="GAVE_UP"):
        await pushed(server, ListSource(images(9)), give_up_after_s=0.2)


async def test_a_stop_ends_the_wait_for_a_server_that_is_gone() -> None:
    server = ProtocolServer()
    server.sessions["s"] = StoredSession()
    stop = asyncio.Event()
    async with served(server) as address:
        client = LookbackClient(address, address)
        await client.__aenter__()
        events = client.push("s", LiveSource(items=endless()), stop=stop)
        async for event in events:
            if not isinstance(event, PushOpened):
                break
    async for event in events:
        if isinstance(event, PushReconnecting):
            stop.set()
    assert isinstance(event, PushLeft)
    await client.__aexit__(None, None, None)


async def test_a_push_goes_on_when_the_server_comes_back_at_the_same_address() -> None:
    server = ProtocolServer()
    server.sessions["s"] = StoredSession()
    async with contextlib.AsyncExitStack() as stack:
        first = served(server)
        address = await first.__aenter__()
        client = await stack.enter_async_context(LookbackClient(address, address))
        source = LiveSource(items=gated(go_on := asyncio.Event()))
        states = []
        async for event in client.push("s", source):
            states.append(type(event))
            if isinstance(event, PushOpened) and event.reconnect_count == 0:
                await first.__aexit__(None, None, None)
            elif isinstance(event, PushReconnecting) and not go_on.is_set():
                await stack.enter_async_context(
                    served(server, port=int(address.rpartition(":")[2]))
                )
                go_on.set()
    assert PushReconnecting in states
    assert server.sessions["s"].durable == [float(i) for i in range(10)]


async def test_a_live_source_that_outruns_what_is_held_tells_the_gap() -> None:
    """Ten images are sent and only four can be held: six are gone when the server is back."""
    server = ProtocolServer()
    server.credit, server.durable_every = 1, 1000
    server.failures.cuts = [("progress", 9)]
    events = await pushed(server, LiveSource(items=live(images(14))), replay_limit_bytes=40)
    gaps = [event for event in events if isinstance(event, PushGap)]
    assert len(gaps) == 1
    assert gaps[0].start_s == 0.0
    kept = server.sessions["s"].durable
    assert kept[0] == gaps[0].end_s
    assert kept == [float(i) for i in range(int(kept[0]), 14)]


async def endless() -> AsyncIterator[Item]:
    number = 0
    while True:
        yield ImageItem(pts_s=float(number), data=b"x")
        number += 1
        await asyncio.sleep(0)


async def gated(gate: asyncio.Event) -> AsyncIterator[Item]:
    for item in images(10):
        if item.pts_s == 5.0:  # type: ignore[union-attr]
            await gate.wait()
        yield item
