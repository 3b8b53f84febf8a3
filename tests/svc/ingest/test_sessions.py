"""Sessions: made, looked at, listed, renamed, deleted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2

from kvstore.reader import SessionReader
from lookback.v1 import session_pb2
from tests.svc.ingest.calls import FINISH, Client, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer


@pytest.fixture
async def client(start: StartServer) -> Client:
    return await start()


async def refusal_of(client: Client, method: str, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await client.sessions(method, **fields)
    return caught.value


async def test_a_new_session_shows_its_settings_and_is_empty(client: Client) -> None:
    created = await client.sessions(
        "CreateSession",
        session_id="cam-1",
        display_name="Front door",
        settings={"sample_fps": 2.5, "window_token_count": 90},
    )
    session = (await client.sessions("GetSession", session_id="cam-1")).session
    assert session == created.session
    assert (session.display_name, session.state) == ("Front door", session.STATE_LIVE)
    assert (session.settings.sample_fps, session.settings.window_token_count) == (2.5, 90)
    assert session.stats.visible_unit_count == 0
    assert not session.stats.HasField("first_pts_s")
    assert session.create_time.seconds > 1_600_000_000
    assert session.model


async def test_settings_that_are_left_out_take_the_servers_defaults(start: StartServer) -> None:
    client = await start(sample_fps=4.0, window_tokens=180)
    session = (await client.create("cam")).session
    assert (session.settings.sample_fps, session.settings.window_token_count) == (4.0, 180)


async def test_a_session_keeps_its_settings_when_the_defaults_change(start: StartServer) -> None:
    client = await start(sample_fps=4.0, window_tokens=180, block_span_s=2.0)
    await client.create("cam")
    await client.close()
    client = await start(sample_fps=1.0, window_tokens=90, block_span_s=9.0)
    call = await client.open(open_images("cam"))
    assert call.opened.target_fps == 4.0
    await call.send(images([0.0]), FINISH)
    await call.rest()
    session = (await client.sessions("GetSession", session_id="cam")).session
    assert session.settings.window_token_count == 180


async def test_a_session_keeps_its_rules_of_gaps_and_late_frames(start: StartServer) -> None:
    client = await start(gap_max_s=5.0, reorder_tolerance_s=1.0)
    await client.create("cam")
    await client.close()
    client = await start(gap_max_s=1.5, reorder_tolerance_s=0.0)
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 3.0, 2.5, 6.0, 12.0]), FINISH)
    await call.rest()
    assert call.progress.late_frame_count == 1
    session = (await client.sessions("GetSession", session_id="cam")).session
    assert session.stats.gap_count == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_fps": -1.0},
        {"sample_fps": 30.5},
        {"sample_fps": math.nan},
        {"sample_fps": math.inf},
        {"window_token_count": 8},
        {"window_token_count": -1},
        {"window_token_count": 40_000},
    ],
)
async def test_settings_out_of_range_are_refused(
    client: Client, settings: dict[str, float]
) -> None:
    refusal = await refusal_of(client, "CreateSession", session_id="cam", settings=settings)
    assert refusal.reason == "INVALID_REQUEST"
    assert next(iter(settings)) in refusal.message


@pytest.mark.parametrize("session_id", ["", "Cam", "-cam", "a/b", "..", "x" * 64, "cam\n"])
async def test_a_name_that_is_none(client: Client, session_id: str) -> None:
    for method in ("CreateSession", "GetSession", "DeleteSession"):
        refusal = await refusal_of(client, method, session_id=session_id)
        assert refusal.reason == "INVALID_SESSION_ID", method
        assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_name_can_be_taken_once_unless_the_settings_agree(client: Client) -> None:
    await client.create("cam", sample_fps=2.0)
    refusal = await refusal_of(client, "CreateSession", session_id="cam")
    assert (refusal.reason, refusal.code) == ("SESSION_EXISTS", grpc.StatusCode.ALREADY_EXISTS)
    for settings in ({}, {"sample_fps": 2.0}):
        again = await client.sessions(
            "CreateSession", session_id="cam", settings=settings, exist_ok=True
        )
        assert again.session.settings.sample_fps == 2.0
    refusal = await refusal_of(
        client, "CreateSession", session_id="cam", settings={"sample_fps": 3.0}, exist_ok=True
    )
    assert refusal.reason == "SESSION_EXISTS"
    assert "2.0, got 3.0" in refusal.message


async def test_stats_follow_a_live_push(client: Client) -> None:
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.5, 1.5, 2.5]))
    await call.until_visible(3)
    stats = (await client.sessions("GetSession", session_id="cam")).session.stats
    assert (stats.visible_unit_count, stats.durable_unit_count) == (3, 0)
    assert (stats.first_pts_s, stats.last_visible_pts_s) == (0.5, 2.5)
    assert not stats.HasField("last_durable_pts_s")
    assert stats.token_count == 27
    await call.send(FINISH)
    await call.rest()
    stats = (await client.sessions("GetSession", session_id="cam")).session.stats
    assert (stats.durable_unit_count, stats.last_durable_pts_s) == (3, 2.5)
    assert stats.disk_bytes > 0


async def test_a_list_reads_the_units_of_a_session_once_while_nothing_changes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_reader = SessionReader.open

    def watched(root: Path, session_id: str) -> SessionReader:
        opened.append(session_id)
        return open_reader(root, session_id)

    async def listed() -> dict[str, int]:
        page = await client.sessions("ListSessions")
        return {s.session_id: s.stats.visible_unit_count for s in page.sessions}

    for name in ("a", "b"):
        await client.create(name)
        call = await client.open(open_images(name))
        await call.send(images([0.0, 1.0]))
        await call.half_close()
        await call.rest()
    monkeypatch.setattr("svc.ingest.stats.SessionReader.open", watched)
    assert await listed() == {"a": 2, "b": 2}
    opened.clear()
    assert await listed() == {"a": 2, "b": 2}
    assert opened == []
    monkeypatch.undo()
    call = await client.open(open_images("b"))
    await call.send(images([2.0]), FINISH)
    await call.rest()
    assert await listed() == {"a": 2, "b": 3}
    await client.sessions("DeleteSession", session_id="a")
    await client.create("a")
    assert await listed() == {"a": 0, "b": 3}


async def test_pages_list_every_session_once_in_order(client: Client) -> None:
    names = [f"cam-{i:02}" for i in range(7)]
    for name in reversed(names):
        await client.create(name)
    for page_size in (1, 3, 7, 100, 5000):
        listed, token = [], ""
        while True:
            page = await client.sessions("ListSessions", page_size=page_size, page_token=token)
            assert 0 < len(page.sessions) <= page_size
            listed += [session.session_id for session in page.sessions]
            token = page.next_page_token
            if not token:
                break
        assert listed == names


async def test_an_empty_store_lists_one_empty_page(client: Client) -> None:
    page = await client.sessions("ListSessions")
    assert (len(page.sessions), page.next_page_token) == (0, "")


@pytest.mark.parametrize("fields", [{"page_size": -1}, {"page_token": "../x"}])
async def test_a_page_that_cannot_be(client: Client, fields: dict[str, Any]) -> None:
    assert (await refusal_of(client, "ListSessions", **fields)).reason == "INVALID_REQUEST"


async def test_a_display_name_can_change_and_nothing_else(client: Client) -> None:
    await client.create("cam")
    mask = field_mask_pb2.FieldMask(paths=["display_name"])
    session = {"session_id": "cam", "display_name": "Yard"}
    await client.sessions("UpdateSession", session=session, update_mask=mask)
    shown = (await client.sessions("GetSession", session_id="cam")).session
    assert shown.display_name == "Yard"
    for paths in ([], ["settings"], ["display_name", "state"]):
        refusal = await refusal_of(
            client,
            "UpdateSession",
            session=session,
            update_mask=field_mask_pb2.FieldMask(paths=paths),
        )
        assert refusal.reason == "INVALID_REQUEST"
    refusal = await refusal_of(
        client,
        "UpdateSession",
        session={"session_id": "cam", "display_name": "x" * 201},
        update_mask=mask,
    )
    assert "201 characters" in refusal.message


async def test_a_deleted_session_is_gone_with_its_files(
    client: Client, values: dict[str, Any]
) -> None:
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0]))
    await call.half_close()
    await call.rest()
    await client.sessions("DeleteSession", session_id="cam")
    assert (await refusal_of(client, "GetSession", session_id="cam")).reason == "SESSION_NOT_FOUND"
    assert not list((Path(values["data_dir"]) / "sessions").iterdir())
    created = await client.create("cam")
    assert created.session.stats.visible_unit_count == 0


async def test_a_session_is_not_deleted_under_its_pusher(client: Client) -> None:
    await client.create("cam")
    call = await client.open(open_images("cam"))
    refusal = await refusal_of(client, "DeleteSession", session_id="cam")
    assert (refusal.reason, refusal.code) == (
        "SESSION_BUSY",
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    await call.send(images([0.0]))
    call.cancel()
    await client.sessions("DeleteSession", session_id="cam")


async def test_a_live_session_is_finished_once_though_the_disk_is_full(
    start: StartServer, values: dict[str, Any]
) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0]))
    assert (await refusal_of(client, "FinishSession", session_id="cam")).reason == "SESSION_BUSY"
    await call.half_close()
    await call.rest()
    await client.close()
    client = await start(min_free_bytes=2**60)
    with pytest.raises(Refused, match="STORE_FULL"):
        await client.open(open_images("cam"))
    finished = (await client.sessions("FinishSession", session_id="cam")).session
    assert finished.state == session_pb2.Session.STATE_FINISHED
    assert finished.stats.durable_unit_count == 2
    again = await refusal_of(client, "FinishSession", session_id="cam")
    assert (again.reason, again.code) == (
        "SESSION_FINISHED",
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    gone = await refusal_of(client, "FinishSession", session_id="none")
    assert gone.reason == "SESSION_NOT_FOUND"


async def test_a_damaged_session_is_told_as_such_and_hides_no_other(
    client: Client, values: dict[str, Any]
) -> None:
    for name in ("bad", "good"):
        await client.create(name)
        call = await client.open(open_images(name))
        await call.send(images([0.0, 1.0]))
        await call.half_close()
        await call.rest()
    segment = next((Path(values["data_dir"]) / "sessions" / "bad").glob("seg-*.kvs"))
    data = bytearray(segment.read_bytes())
    data[:64] = bytes(64)
    segment.write_bytes(data)
    with pytest.raises(Refused) as caught:
        await client.open(open_images("bad"))
    assert (caught.value.reason, caught.value.code) == (
        "STORE_DAMAGED",
        grpc.StatusCode.DATA_LOSS,
    )
    page = await client.sessions("ListSessions")
    assert [session.session_id for session in page.sessions] == ["bad", "good"]
    assert not page.sessions[0].HasField("stats")
    assert page.sessions[1].stats.durable_unit_count == 2
