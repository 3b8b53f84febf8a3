"""Every way a call can be wrong: one clear refusal, nothing accepted is lost, others go on."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import grpc
import pytest

from lookback.v1 import ingest_pb2
from tests.svc.ingest.calls import FINISH, Client, Refused, images, jpeg, open_images
from tests.svc.ingest.conftest import StartServer

FOUR_UNITS = [0.0, 1.0, 2.0, 3.0]


@pytest.fixture
async def client(start: StartServer) -> Client:
    client = await start()
    await client.create("cam")
    return client


async def push_then(client: Client, *bad: ingest_pb2.IngestRequest) -> Refused:
    """Sends four good pictures, then what is bad; returns how the call ended."""
    call = await client.open(open_images("cam"))
    await call.send(images(FOUR_UNITS), *bad)
    with pytest.raises(Refused) as caught:
        await call.rest()
    assert call.progress.durable_unit_count == 4
    return caught.value


async def assert_usable(client: Client) -> None:
    """The session goes on where the acknowledged part ends."""
    call = await client.open(open_images("cam"))
    assert call.opened.durable_pts_s == 3.0
    await call.send(images([*FOUR_UNITS, 4.0]), FINISH)
    await call.rest()
    assert call.progress.durable_unit_count == 5
    assert call.progress.known_frame_count == 4


@pytest.mark.parametrize("pts_s", [math.nan, math.inf, 1e11, 1.5])
async def test_a_time_that_cannot_be(client: Client, pts_s: float) -> None:
    message = ingest_pb2.IngestRequest(
        images=ingest_pb2.Images(images=[ingest_pb2.Image(pts_s=pts_s, data=jpeg(1))])
    )
    refusal = await push_then(client, message)
    assert (refusal.reason, refusal.code) == ("PTS_INVALID", grpc.StatusCode.INVALID_ARGUMENT)
    await assert_usable(client)


async def test_a_picture_that_is_none(client: Client) -> None:
    message = ingest_pb2.IngestRequest(
        images=ingest_pb2.Images(images=[ingest_pb2.Image(pts_s=4.0, data=b"\xff\xd8 not a jpeg")])
    )
    refusal = await push_then(client, message)
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason in {"MEDIA_CORRUPT", "MEDIA_UNSUPPORTED"}
    await assert_usable(client)


async def test_media_of_another_form_than_was_announced(client: Client) -> None:
    chunk = ingest_pb2.IngestRequest(chunk=ingest_pb2.Chunk(data=b"abc"))
    refusal = await push_then(client, chunk)
    assert refusal.reason == "MEDIA_MISMATCH"
    await assert_usable(client)


async def test_a_second_open(client: Client) -> None:
    refusal = await push_then(client, open_images("cam"))
    assert refusal.reason == "INVALID_REQUEST"
    assert "got open" in refusal.message
    await assert_usable(client)


async def test_a_message_without_content(client: Client) -> None:
    refusal = await push_then(client, ingest_pb2.IngestRequest())
    assert refusal.reason == "INVALID_REQUEST"
    await assert_usable(client)


async def test_more_items_than_the_credit(client: Client) -> None:
    call = await client.open(open_images("cam"))
    await call.send(images([0.5 * i for i in range(17)]))
    with pytest.raises(Refused) as caught:
        await call.rest()
    assert caught.value.reason == "CREDIT_EXCEEDED"
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "17 items" in caught.value.message
    assert "16 were allowed" in caught.value.message
    assert call.progress.received_frame_count == 16
    assert (call.progress.durable_unit_count, call.progress.durable_pts_s) == (8, 7.0)


async def test_the_credit_grows_as_items_are_consumed(client: Client) -> None:
    call = await client.open(open_images("cam"))
    await call.send_all(images([0.1 * i]) for i in range(100))
    await call.send(FINISH)
    await call.rest()
    assert call.progress.credit_item_count == 116
    assert call.progress.received_frame_count == 100


async def test_a_message_beyond_the_limit_keeps_what_came_before(client: Client) -> None:
    call = await client.open(open_images("cam"))
    await call.send(images(FOUR_UNITS))
    await call.until_visible(4)
    big = ingest_pb2.Image(pts_s=4.0, data=bytes(9 * 2**20))
    await call.send(ingest_pb2.IngestRequest(images=ingest_pb2.Images(images=[big])))
    with pytest.raises(Refused) as caught:
        await call.rest()
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    await assert_usable(client)


@pytest.mark.parametrize("first", [images([0.0]), FINISH, ingest_pb2.IngestRequest()])
async def test_a_first_message_that_is_not_open(
    client: Client, first: ingest_pb2.IngestRequest
) -> None:
    with pytest.raises(Refused) as caught:
        await client.open(first)
    assert caught.value.reason == "OPEN_EXPECTED"


async def test_a_call_that_ends_before_its_first_message(client: Client) -> None:
    call = client.ingest()
    await call.half_close()
    with pytest.raises(Refused) as caught:
        await call.rest()
    assert caught.value.reason == "OPEN_EXPECTED"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"session_id": "nobody", "images": {}}, "SESSION_NOT_FOUND"),
        ({"session_id": "../etc", "images": {}}, "INVALID_SESSION_ID"),
        ({"session_id": "cam"}, "INVALID_REQUEST"),
        ({"session_id": "cam", "packets": {}}, "MEDIA_UNSUPPORTED"),
        ({"session_id": "cam", "packets": {"codec": 99}}, "MEDIA_UNSUPPORTED"),
        ({"session_id": "cam", "container": {"format": "exe"}}, "MEDIA_UNSUPPORTED"),
        ({"session_id": "cam", "images": {"raw_width": 4}}, "MEDIA_UNSUPPORTED"),
        ({"session_id": "cam", "images": {"raw_width": -1, "raw_height": -1}}, "MEDIA_UNSUPPORTED"),
    ],
)
async def test_an_open_that_cannot_be(client: Client, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused) as caught:
        await client.open(ingest_pb2.IngestRequest(open=ingest_pb2.Open(**fields)))
    assert caught.value.reason == reason
    call = await client.open(open_images("cam"))  # nothing holds the session
    call.cancel()


async def test_a_second_pusher_is_refused_while_the_first_goes_on(client: Client) -> None:
    first = await client.open(open_images("cam"))
    with pytest.raises(Refused) as caught:
        await client.open(open_images("cam"))
    assert (caught.value.reason, caught.value.code) == (
        "SESSION_IN_USE",
        grpc.StatusCode.ABORTED,
    )
    await first.send(images(FOUR_UNITS), FINISH)
    await first.rest()
    assert first.finished is not None


async def test_a_call_that_was_dropped_makes_room_at_once(client: Client) -> None:
    for stop in range(1, 5):
        call = await client.open(open_images("cam"))
        await call.send(images(FOUR_UNITS[:stop]))
        await call.until_visible(stop)
        call.cancel()
    await assert_usable(client)


async def test_a_session_held_by_another_process_is_in_use(
    client: Client, start: StartServer
) -> None:
    other = await start()
    held = await other.open(open_images("cam"))
    with pytest.raises(Refused) as caught:
        await client.open(open_images("cam"))
    assert caught.value.reason == "SESSION_IN_USE"
    await held.send(images([0.0]), FINISH)
    await held.rest()


async def test_calls_beyond_the_limit_are_refused_at_once(start: StartServer) -> None:
    client = await start(max_live_pushes=2)
    for name in ("a", "b", "c"):
        await client.create(name)
    held = [await client.open(open_images(name)) for name in ("a", "b")]
    with pytest.raises(Refused) as caught:
        await client.open(open_images("c"))
    assert caught.value.reason == "TOO_MANY_CALLS"
    for call in held:
        await call.send(FINISH)
        await call.rest()
    await client.open(open_images("c"))


async def test_a_full_disk_refuses_the_session_and_loses_nothing(
    start: StartServer, client: Client
) -> None:
    call = await client.open(open_images("cam"))
    await call.send(images(FOUR_UNITS))
    await call.half_close()
    await call.rest()
    full = await start(min_free_bytes=2**60)
    with pytest.raises(Refused) as caught:
        await full.open(open_images("cam"))
    assert (caught.value.reason, caught.value.code) == (
        "STORE_FULL",
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    assert str(2**60) in caught.value.message
    await assert_usable(client)


async def test_one_bad_call_leaves_another_session_served(client: Client) -> None:
    await client.create("other")
    good = await client.open(open_images("other"))
    await good.send(images([0.0, 1.0]))
    bad = await client.open(open_images("cam"))
    await bad.send(ingest_pb2.IngestRequest(chunk=ingest_pb2.Chunk(data=b"abc")))
    with pytest.raises(Refused):
        await bad.rest()
    await good.send(images([2.0]), FINISH)
    await good.rest()
    assert good.progress.durable_unit_count == 3


async def test_an_abandoned_call_leaves_no_task_and_no_thread(
    start: StartServer, recwarn: pytest.WarningsRecorder
) -> None:
    asyncio.get_running_loop().set_debug(True)
    client = await start()
    await client.create("cam")
    before = asyncio.all_tasks()
    for _ in range(3):
        call = await client.open(open_images("cam"))
        await call.send(images([0.0]))
        call.cancel()
    call = await client.open(open_images("cam"))
    await call.send(FINISH)
    await call.rest()
    await client.close()
    assert not [task for task in asyncio.all_tasks() - before if "push" in task.get_name()]
    for thread in threading.enumerate():
        if thread.name.startswith(("encode", "media", "container")):
            thread.join(10)
            assert not thread.is_alive(), thread.name
    assert not [w for w in recwarn if "never awaited" in str(w.message)]
