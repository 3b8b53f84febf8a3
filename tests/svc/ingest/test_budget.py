"""Budgets as clients meet them: refused by name, nothing acknowledged lost; or the oldest goes."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from kvstore.diskuse import used_bytes
from kvstore.paths import session_folder
from kvstore.reader import SessionReader
from tests.svc.ingest.calls import FINISH, Client, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.ingest.stored import read_stored

_KIB = 1024
_TIMES_S = [float(i) for i in range(200)]


async def push(client: Client, session_id: str, times_s: list[float]) -> int:
    """Push pictures to the end; return what was acknowledged; a refusal has it as its note."""
    call = await client.open(open_images(session_id))
    try:
        await call.send_all([images([time_s]) for time_s in times_s])
        await call.send(FINISH)
        await call.rest()
    except Refused as refusal:
        refusal.add_note(str(call.progress.durable_unit_count))
        raise
    return call.progress.durable_unit_count


async def measure(start: StartServer, values: dict[str, Any]) -> int:
    """What a session of a few units takes, most of it the index's first chunk."""
    client = await start()
    await client.create("small")
    await push(client, "small", _TIMES_S[:4])
    await client.close()
    return used_bytes(session_folder(values["data_dir"], "small"))


async def test_a_push_beyond_the_sessions_budget_is_refused_by_its_name(
    start: StartServer, values: dict[str, Any]
) -> None:
    budget = await measure(start, values) + 300 * _KIB
    client = await start(session_budget_bytes=budget, budget_high_fraction=0.99)
    await client.create("cam")
    with pytest.raises(Refused) as caught:
        await push(client, "cam", _TIMES_S)
    refusal = caught.value
    assert (refusal.reason, refusal.code) == ("STORE_FULL", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "session_budget_bytes" in refusal.message
    assert str(budget) in refusal.message
    root = values["data_dir"]
    assert used_bytes(session_folder(root, "cam")) <= budget
    stored = read_stored(root, "cam")
    acknowledged = int(refusal.__notes__[0])
    assert stored.durable_unit_count >= acknowledged > 5
    assert stored.last_pts_s == _TIMES_S[: stored.durable_unit_count]
    # Told at once the next time, not when the first block is full.
    with pytest.raises(Refused) as again:
        await push(client, "cam", _TIMES_S)
    assert again.value.reason == "STORE_FULL"
    await client.close()
    # And with room it goes on from there.
    client = await start(session_budget_bytes=20 * budget)
    await push(client, "cam", _TIMES_S)
    stored = read_stored(root, "cam")
    assert stored.last_pts_s == _TIMES_S
    assert stored.row_count == 200


async def test_a_push_that_drops_goes_on_and_the_session_says_what_it_remembers(
    start: StartServer, values: dict[str, Any]
) -> None:
    budget = await measure(start, values) + 400 * _KIB
    client = await start(session_budget_bytes=budget, on_full="drop_oldest", window_tokens=32)
    await client.create("cam")
    await push(client, "cam", _TIMES_S)
    root = values["data_dir"]
    assert used_bytes(session_folder(root, "cam")) <= budget
    reader = SessionReader.open(root, "cam")
    snapshot = reader.snapshot()
    reader.close()
    assert snapshot.unit_count == 200
    assert 20 < snapshot.first_unit < 199


async def test_a_push_that_thins_keeps_the_whole_length_and_its_index(
    start: StartServer, values: dict[str, Any]
) -> None:
    budget = await measure(start, values) + 1100 * _KIB
    client = await start(
        session_budget_bytes=budget,
        on_full="thin",
        window_tokens=32,
        block_tokens=144,
        block_span_s=60,
        budget_high_fraction=0.85,
        budget_low_fraction=0.8,
    )
    await client.create("cam")
    assert await push(client, "cam", _TIMES_S) == 200
    root = values["data_dir"]
    assert used_bytes(session_folder(root, "cam")) <= budget
    reader = SessionReader.open(root, "cam")
    snapshot = reader.snapshot()
    reader.close()
    assert (snapshot.first_unit, snapshot.unit_count) == (0, 200)
    assert snapshot.coarsened.sum() > 20
    stored = read_stored(root, "cam")
    assert stored.last_pts_s == _TIMES_S
    assert stored.row_count == 200
