"""Pinned spans through the service: set under a push, over restarts, and what is too late."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest

from kvstore.reader import SessionReader
from kvstore.session import load_session
from tests.svc.ingest.calls import FINISH, Client, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer


async def pin(client: Client, start_s: float, end_s: float, method: str = "PinSpan") -> Any:
    return await client.sessions(
        method, session_id="cam", span={"start_s": start_s, "end_s": end_s}
    )


def spans_of(response: Any) -> list[tuple[float, float]]:
    return [(span.start_s, span.end_s) for span in response.session.pinned_spans]


async def test_spans_are_listed_merged_cut_and_kept_over_a_restart(
    start: StartServer, values: dict[str, Any]
) -> None:
    client = await start()
    await client.create("cam")
    assert spans_of(await pin(client, 10.0, 20.0)) == [(10.0, 20.0)]
    assert spans_of(await pin(client, 20.0, 25.0)) == [(10.0, 25.0)]
    assert spans_of(await pin(client, 40.0, 50.0)) == [(10.0, 25.0), (40.0, 50.0)]
    assert spans_of(await pin(client, 12.0, 14.0, "UnpinSpan")) == [
        (10.0, 12.0),
        (14.0, 25.0),
        (40.0, 50.0),
    ]
    await client.close()
    client = await start()
    shown = await client.sessions("GetSession", session_id="cam")
    assert spans_of(shown) == [(10.0, 12.0), (14.0, 25.0), (40.0, 50.0)]
    renamed = await client.sessions(
        "UpdateSession",
        session={"session_id": "cam", "display_name": "Yard"},
        update_mask={"paths": ["display_name"]},
    )
    assert spans_of(renamed) == spans_of(shown)


@pytest.mark.parametrize("method", ["PinSpan", "UnpinSpan"])
@pytest.mark.parametrize(
    "span", [(5.0, 5.0), (6.0, 5.0), (math.nan, 1.0), (0.0, math.inf), (0.0, 1e11)]
)
async def test_a_span_that_cannot_be(
    start: StartServer, method: str, span: tuple[float, float]
) -> None:
    client = await start()
    await client.create("cam")
    with pytest.raises(Refused) as caught:
        await pin(client, *span, method)
    assert (caught.value.reason, caught.value.code) == (
        "INVALID_REQUEST",
        grpc.StatusCode.INVALID_ARGUMENT,
    )


@pytest.mark.parametrize("method", ["PinSpan", "UnpinSpan"])
async def test_a_session_that_is_not_there(start: StartServer, method: str) -> None:
    client = await start()
    with pytest.raises(Refused) as caught:
        await pin(client, 0.0, 1.0, method)
    assert caught.value.reason == "SESSION_NOT_FOUND"


async def test_more_spans_than_are_allowed(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.pins.MAX_PINNED_SPANS", 2)
    client = await start()
    await client.create("cam")
    for start_s in (0.0, 10.0):
        await pin(client, start_s, start_s + 1)
    with pytest.raises(Refused) as caught:
        await pin(client, 20.0, 21.0)
    assert (caught.value.reason, caught.value.code) == (
        "TOO_MANY_SPANS",
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    assert len(spans_of(await client.sessions("GetSession", session_id="cam"))) == 2


async def test_a_pin_that_is_set_while_a_push_runs_is_known_to_its_writer(
    start: StartServer, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    stream_open = "svc.ingest.app.StreamIngest.open"
    from svc.engine.ingest_session import StreamIngest

    real = StreamIngest.open

    def watched(model: Any, window: Any, session_id: str, store: Any, *others: Any) -> Any:
        opened.append(store.pinned)
        return real(model, window, session_id, store, *others)

    monkeypatch.setattr(stream_open, watched)
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0, 2.0]))
    await call.until_visible(3)
    assert opened[0]() == []
    assert spans_of(await pin(client, 1.0, 2.0)) == [(1.0, 2.0)]
    # With the frame that was on screen as the span begins, and not the one before.
    ((start_s, end_s),) = opened[0]()
    assert 0.0 < start_s < 1e-9
    assert end_s == 2.0
    await call.send(FINISH)
    await call.rest()
    root = values["data_dir"]
    record = load_session(root, "cam")
    assert record.state == "finished"
    assert record.pinned_spans == ((1.0, 2.0),)


async def test_what_was_dropped_cannot_be_pinned_and_the_refusal_says_from_when_on(
    start: StartServer, values: dict[str, Any]
) -> None:
    client = await start(
        session_budget_bytes=2**20 + 2**19,
        on_full="drop_oldest",
        block_span_s=2.0,
        window_tokens=32,
    )
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send_all([images([float(i)]) for i in range(260)])
    await call.send(FINISH)
    await call.rest()
    shown = (await client.sessions("GetSession", session_id="cam")).session
    first_s = shown.stats.first_pts_s
    assert shown.stats.dropped_unit_count > 0
    with pytest.raises(Refused) as caught:
        await pin(client, first_s - 1, first_s + 5)
    assert (caught.value.reason, caught.value.code) == (
        "SPAN_DROPPED",
        grpc.StatusCode.OUT_OF_RANGE,
    )
    for told in (f"what lies before {first_s:g} s is gone", "budget is full", "can be pinned"):
        assert told in caught.value.message
    with pytest.raises(Refused) as caught:
        await pin(client, 0.0, 1.0)
    assert caught.value.reason == "SPAN_DROPPED"
    assert "all of it is gone" in caught.value.message
    assert f"remembers from {first_s:g} s on" in caught.value.message
    assert spans_of(await client.sessions("GetSession", session_id="cam")) == []
    assert spans_of(await pin(client, first_s, first_s + 5)) == [(first_s, first_s + 5)]


async def test_a_span_in_which_a_finished_session_has_nothing_is_refused(
    start: StartServer,
) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send_all([images([float(i)]) for i in range(5)])
    await pin(client, 90.0, 91.0)  # it may still come
    await call.send(FINISH)
    await call.rest()
    for span in ((90.0, 91.0), (5.0, 6.0), (-2.0, 0.0)):
        with pytest.raises(Refused) as caught:
            await pin(client, *span)
        assert caught.value.reason == "INVALID_REQUEST"
        assert "has video from 0 s to 4 s" in caught.value.message
    assert spans_of(await pin(client, 4.5, 6.0)) == [(4.5, 6.0), (90.0, 91.0)]  # 4 is on screen


@pytest.mark.parametrize("on_full", ["drop_oldest", "thin"])
async def test_what_is_pinned_under_a_push_stays_whole_and_the_push_is_refused_in_the_end(
    start: StartServer, values: dict[str, Any], on_full: str
) -> None:
    client = await start(
        session_budget_bytes=2**20 + 2**19, on_full=on_full, block_span_s=2.0, window_tokens=32
    )
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await pin(client, 40.5, 43.0)  # nothing of it has come yet
    with pytest.raises(Refused, match="STORE_FULL"):
        await call.send_all([images([float(i)]) for i in range(800)])
    call.cancel()
    await client.close()
    reader = SessionReader.open(values["data_dir"], "cam")
    snapshot = reader.snapshot()
    reader.close()
    # From the frame that was on screen when the span began.
    assert 0 <= snapshot.first_unit <= 40
    assert not snapshot.coarsened[40:43].any()
    if on_full == "thin":
        assert snapshot.coarsened[:40].any()
        client = await start()
        pinned = await pin(client, 20.0, 42.0)
        assert pinned.thinned_unit_count == snapshot.coarsened[20:42].sum() > 0
    else:
        assert snapshot.first_unit > 20
