"""Pushes: what is sent, when it ends, and what it fails with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from svc.client import (
    LiveSource,
    LookbackError,
    PushFinished,
    PushLeft,
    PushOpened,
    PushProgress,
    PushReconnecting,
)
from svc.rpc.errors import Reason, RequestError
from svc.video.frames import ImageItem
from tests.svc.client.material import ListSource, images
from tests.svc.client.protocol_server import (
    ProtocolServer,
    StoredSession,
    connected,
)
from tests.svc.client.pushing import pushed


async def test_a_push_sends_everything_and_ends_with_the_acknowledged_finish() -> None:
    server = ProtocolServer()
    events = await pushed(server, ListSource(images(20)))
    assert isinstance(events[0], PushOpened)
    assert isinstance(events[-1], PushFinished)
    assert events[-1].progress.durable_pts_s == 19.0
    assert server.sessions["s"].durable == [float(i) for i in range(20)]
    assert server.sessions["s"].finished


@pytest.mark.parametrize("credit", [1, 2, 5])
async def test_no_item_is_sent_beyond_the_credit(credit: int) -> None:
    """The server refuses the first item too many, and never is there one."""
    server = ProtocolServer()
    server.credit = credit
    await pushed(server, ListSource(images(50)))
    assert server.sessions["s"].finished
    assert len(server.calls) == 1


async def test_without_credit_nothing_is_sent_and_with_some_exactly_as_much() -> None:
    server = ProtocolServer()
    server.credit, server.more_credit = 3, False
    server.sessions["s"] = StoredSession()
    stop = asyncio.Event()
    async with connected(server) as client:
        async for event in client.push("s", ListSource(images(50)), stop=stop):
            if isinstance(event, PushProgress) and event.received_frame_count == 3:
                stop.set()
    assert isinstance(event, PushLeft)
    assert event.progress is not None
    assert event.progress.sent_item_count == 3
    assert server.sessions["s"].durable == [0.0, 1.0, 2.0]


async def test_messages_stay_below_the_servers_limit() -> None:
    """The server says 4096 bytes; 30 images of 1000 bytes take at least 8 messages."""
    server = ProtocolServer()
    server.credit = 64
    await pushed(server, ListSource(images(30, size_bytes=1000)))
    assert server.calls[0].count("images") >= 8


async def test_an_item_larger_than_a_message_is_refused_here_with_both_sizes() -> None:
    with pytest.raises(LookbackError) as caught:
        await pushed(ProtocolServer(), ListSource(images(1, size_bytes=5000)))
    assert caught.value.reason == "ITEM_TOO_LARGE"
    assert caught.value.metadata == {"item_bytes": "5000", "max_message_bytes": "4096"}


@pytest.mark.parametrize("reason", [Reason.MEDIA_CORRUPT, Reason.PTS_INVALID, Reason.INTERNAL])
async def test_what_trying_again_does_not_help_is_raised_with_its_reason(reason: Reason) -> None:
    server = ProtocolServer()
    server.refuse_items_after = (5, RequestError(reason, "no good", pts_s=5.0))
    with pytest.raises(LookbackError) as caught:
        await pushed(server, ListSource(images(20)))
    assert caught.value.reason == reason.name
    assert caught.value.message == "no good"
    assert caught.value.metadata == {"pts_s": "5.0"}
    assert caught.value.code is reason.code


@pytest.mark.parametrize("attempt", range(5))
async def test_a_refusal_is_heard_although_writes_are_under_way(attempt: int) -> None:
    """The binding forgets the status of a call that ends while it writes: it is asked again."""
    server = ProtocolServer()
    server.credit = 10_000
    server.refuse_items_after = (4, RequestError(Reason.MEDIA_CORRUPT, "no good"))
    with pytest.raises(LookbackError) as caught:
        await pushed(server, ListSource(images(300, size_bytes=2000)))
    assert caught.value.reason == "MEDIA_CORRUPT"
    assert len(server.calls) <= 4, "the second call listens more closely"


async def test_a_busy_session_is_tried_again_as_the_server_says() -> None:
    server = ProtocolServer()
    server.refuse_opens = [
        RequestError(Reason.SESSION_IN_USE, "another client pushes"),
        RequestError(Reason.DRAINING, "stopping"),
    ]
    events = await pushed(server, ListSource(images(4)))
    reasons = [e.error.reason for e in events if isinstance(e, PushReconnecting)]
    assert reasons == ["SESSION_IN_USE", "DRAINING"]
    assert isinstance(events[-1], PushFinished)


async def test_a_missing_session_is_an_error_at_once() -> None:
    async with connected(ProtocolServer()) as client:
        with pytest.raises(LookbackError, match="SESSION_NOT_FOUND"):
            async for _ in client.push("nobody", ListSource(images(3))):
                pass


async def test_a_finished_session_takes_no_second_push() -> None:
    server = ProtocolServer()
    server.sessions["s"] = StoredSession(durable=[0.0], finished=True)
    with pytest.raises(LookbackError, match="SESSION_FINISHED"):
        await pushed(server, ListSource(images(3)))


async def test_a_push_gives_up_after_its_limit_and_says_what_happened_last() -> None:
    server = ProtocolServer()
    server.sessions["s"] = StoredSession()
    server.failures.cuts = [("images", 0)] * 1000
    with pytest.raises(LookbackError) as caught:
        await pushed(server, ListSource(images(9)), give_up_after_s=0.05)
    assert caught.value.reason == "GAVE_UP"
    assert caught.value.metadata["last_reason"] == "CONNECTION_LOST"


async def test_a_later_push_starts_at_the_durable_time() -> None:
    server = ProtocolServer()
    server.sessions["s"] = StoredSession(durable=[0.0, 1.0, 2.0, 3.0])
    source = ListSource(images(8))
    events = await pushed(server, source)
    assert isinstance(events[0], PushOpened)
    assert events[0].durable_pts_s == 3.0
    assert source.starts == [3.0]
    assert server.sessions["s"].durable == [float(i) for i in range(8)]


async def test_without_finish_the_session_stays_live_with_everything_durable() -> None:
    server = ProtocolServer()
    events = await pushed(server, ListSource(images(8)), finish=False)
    assert isinstance(events[-1], PushLeft)
    assert server.sessions["s"].durable == [float(i) for i in range(8)]
    assert not server.sessions["s"].finished
    assert "finish" not in server.calls[0]


async def test_a_stopped_push_ends_cleanly_and_can_be_gone_on_with() -> None:
    server = ProtocolServer()
    server.sessions["s"] = StoredSession()
    stop = asyncio.Event()
    async with connected(server) as client:
        events = []
        async for event in client.push("s", ListSource(images(500)), stop=stop):
            events.append(event)
            stop.set()
        assert isinstance(events[-1], PushLeft)
        assert not server.sessions["s"].finished
        assert len(server.sessions["s"].durable) < 500
        events = [event async for event in client.push("s", ListSource(images(500)))]
    assert server.sessions["s"].durable == [float(i) for i in range(500)]


async def test_a_fault_of_the_source_reaches_the_caller_as_it_is() -> None:
    async def broken() -> AsyncIterator[ImageItem]:
        yield ImageItem(pts_s=0.0, data=b"x")
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        await pushed(ProtocolServer(), LiveSource(items=broken()))
