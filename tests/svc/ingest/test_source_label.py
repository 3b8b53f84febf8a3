"""Two videos become one session only where that is asked for."""

from __future__ import annotations

import grpc
import pytest

from lookback.v1 import ingest_pb2
from tests.svc.ingest.calls import FINISH, Client, IngestCall, Refused, images
from tests.svc.ingest.conftest import StartServer


@pytest.fixture
async def client(start: StartServer) -> Client:
    client = await start()
    await client.create("cam")
    return client


def opening(fingerprint: str | None, *, name: str = "", join: bool = False) -> ingest_pb2.Open:
    label = None
    if fingerprint is not None:
        label = ingest_pb2.SourceLabel(fingerprint=fingerprint, name=name)
    return ingest_pb2.Open(
        session_id="cam", images=ingest_pb2.ImageMedia(), source=label, join_source=join
    )


async def opened(client: Client, first: ingest_pb2.Open) -> IngestCall:
    return await client.open(ingest_pb2.IngestRequest(open=first))


async def push(client: Client, first: ingest_pb2.Open, *pts_s: float) -> IngestCall:
    """Pushes pictures and leaves the session live."""
    call = await opened(client, first)
    if pts_s:
        await call.send(images(pts_s))
    await call.half_close()
    return await call.rest()


async def refusal_of(client: Client, first: ingest_pb2.Open) -> Refused:
    with pytest.raises(Refused) as caught:
        await opened(client, first)
    return caught.value


async def test_another_video_is_refused_by_both_names_and_the_same_goes_on(client: Client) -> None:
    await push(client, opening("1", name="a.mp4"), 0.0, 1.0)
    refusal = await refusal_of(client, opening("2", name="b.mp4"))
    assert (refusal.reason, refusal.code) == (
        "SOURCE_MISMATCH",
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert "'a.mp4' (1), not of 'b.mp4' (2); join_source" in refusal.message
    call = await push(client, opening("1", name="renamed.mp4"), 0.0, 1.0, 2.0)
    assert (call.opened.durable_pts_s, call.progress.durable_unit_count) == (1.0, 3)


async def test_a_restarted_server_still_knows_the_video(start: StartServer) -> None:
    client = await start()
    await client.create("cam")
    await push(client, opening("1", name="a.mp4"), 0.0)
    await client.close()
    client = await start()
    assert (await refusal_of(client, opening("2"))).reason == "SOURCE_MISMATCH"


async def test_a_video_that_is_joined_takes_the_place_of_the_one_before(client: Client) -> None:
    await push(client, opening("1"), 0.0)
    await push(client, opening("2", join=True), 1.0)
    await push(client, opening("2"), 2.0)
    assert (await refusal_of(client, opening("1"))).reason == "SOURCE_MISMATCH"


async def test_a_session_that_holds_nothing_takes_another_video(client: Client) -> None:
    await push(client, opening("broken"))
    call = await push(client, opening("whole"), 0.0)
    assert call.progress.durable_unit_count == 1


async def test_a_join_that_stored_nothing_leaves_the_session_to_the_one_before(
    client: Client,
) -> None:
    await push(client, opening("1"), 0.0)
    assert (await push(client, opening("2", join=True))).opened.joined
    assert (await refusal_of(client, opening("2"))).reason == "SOURCE_MISMATCH"
    await push(client, opening("2", join=True))
    await push(client, opening(None), 1.0)  # of what comes without a label, nothing is another's
    call = await push(client, opening("1"), 2.0)
    assert (call.opened.joined, call.progress.durable_unit_count) == (False, 3)


@pytest.mark.parametrize("first_s", [0.0, 1.0])
async def test_a_joined_video_must_begin_after_what_the_session_has(
    client: Client, first_s: float
) -> None:
    """Its frames would be left out as those of a resumed push are: nobody would hear of it."""
    await push(client, opening("1"), 0.0, 1.0)
    with pytest.raises(Refused) as caught:
        await push(client, opening("2", join=True), first_s, 2.0)
    assert caught.value.reason == "SOURCE_MISMATCH"
    assert "begin after 1 s" in caught.value.message
    assert f"begins at {first_s:g} s" in caught.value.message
    call = await push(client, opening("1"), 0.0, 1.0, 2.0)
    assert call.progress.durable_unit_count == 3


async def test_a_joined_video_goes_on_with_the_same_command(client: Client) -> None:
    await push(client, opening("1"), 0.0)
    await push(client, opening("2", join=True), 1.0)
    call = await push(client, opening("2", join=True), 1.0, 2.0)
    assert (call.opened.joined, call.progress.durable_unit_count) == (False, 3)
    assert call.progress.known_frame_count == 1


async def test_what_has_no_label_is_neither_checked_nor_kept(client: Client) -> None:
    await push(client, opening("1"), 0.0)
    await push(client, opening(None), 1.0)
    assert (await refusal_of(client, opening("2"))).reason == "SOURCE_MISMATCH"
    call = await opened(client, opening("1"))
    await call.send(FINISH)
    await call.rest()
    assert call.finished is not None


async def test_video_without_a_label_is_another_source_than_one_with_a_label(
    client: Client,
) -> None:
    await push(client, opening(None), 0.0)
    refusal = await refusal_of(client, opening("1", name="a.mp4"))
    assert refusal.reason == "SOURCE_MISMATCH"
    assert "of a source without a label, not of 'a.mp4' (1); join_source" in refusal.message
    assert (await push(client, opening(None), 0.0, 1.0)).progress.durable_unit_count == 2
    call = await push(client, opening("1", join=True), 2.0)
    assert (call.opened.joined, call.progress.durable_unit_count) == (True, 3)


@pytest.mark.parametrize(("fingerprint", "name"), [("", "a"), ("x" * 201, ""), ("1", "x" * 256)])
async def test_a_label_that_cannot_be(client: Client, fingerprint: str, name: str) -> None:
    refusal = await refusal_of(client, opening(fingerprint, name=name))
    assert refusal.reason == "INVALID_REQUEST"
    assert "open.source." in refusal.message
