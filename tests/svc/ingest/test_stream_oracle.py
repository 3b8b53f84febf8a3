"""However a stream is pushed, the session holds the same: units, times, keys and values."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.svc.ingest.calls import FINISH, Client, images, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.ingest.stored import Stored, assert_same, read_stored

TIMES_S = [0.4 * i for i in range(60)]
WINDOW = {"window_token_count": 45, "sample_fps": 1.25}
"""Five units of nine tokens: the window has moved long before the end."""
REDUCTIONS = ["none", "last_kept:0.8", "budget:0.5", "key_norm:0.5"]


@pytest.fixture(params=REDUCTIONS)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of the sessions."""
    return {**WINDOW, "reduction": request.param}


async def push_one_by_one(client: Client, session_id: str, times_s: list[float]) -> None:
    call = await client.open(open_images(session_id))
    await call.send_all(images([t]) for t in times_s)
    await call.send(FINISH)
    await call.rest()
    assert call.finished is not None


@pytest.fixture
async def reference(start: StartServer, values: dict[str, Any], settings: dict[str, Any]) -> Stored:
    """The stream, pushed alone, picture by picture, encoded one unit at a time."""
    data_dir = values["data_dir"] / "reference"
    client = await start(data_dir=data_dir, units_per_pass=1)
    await client.create("cam", **settings)
    await push_one_by_one(client, "cam", TIMES_S)
    await client.close()
    stored = read_stored(data_dir, "cam")
    assert stored.last_pts_s == pytest.approx([0.8 * i for i in range(30)])
    assert (sum(stored.token_counts) < 0.8 * 9 * 30) == (settings["reduction"] != "none")
    return stored


@pytest.mark.parametrize("batch", [7, 16])
async def test_batches_give_what_single_pictures_give(
    start: StartServer,
    values: dict[str, Any],
    settings: dict[str, Any],
    reference: Stored,
    batch: int,
) -> None:
    client = await start(credit_items=64)
    await client.create("cam", **settings)
    call = await client.open(open_images("cam"))
    await call.send(*(images(TIMES_S[i : i + batch]) for i in range(0, 60, batch)), FINISH)
    await call.rest()
    assert_same(read_stored(values["data_dir"], "cam"), reference)


async def test_sessions_side_by_side_give_what_one_alone_gives(
    start: StartServer, values: dict[str, Any], settings: dict[str, Any], reference: Stored
) -> None:
    client = await start()
    names = ["cam-a", "cam-b", "cam-c"]
    for name in names:
        await client.create(name, **settings)
    async with asyncio.TaskGroup() as pushes:
        for name in names:
            pushes.create_task(push_one_by_one(client, name, TIMES_S))
    for name in names:
        assert_same(read_stored(values["data_dir"], name), reference)


async def test_a_push_resumed_anywhere_gives_what_an_uninterrupted_one_gives(
    start: StartServer, values: dict[str, Any], settings: dict[str, Any], reference: Stored
) -> None:
    client = await start()
    await client.create("cam", **settings)
    for stop in (1, 8, 9, 30, 47):
        call = await client.open(open_images("cam"))
        durable_s = call.opened.durable_pts_s if call.opened.HasField("durable_pts_s") else -1.0
        start_at = max(0, int(durable_s / 0.4) - 2)  # from a picture that it has already
        await call.send_all(images([t]) for t in TIMES_S[start_at:stop])
        await call.half_close()
        await call.rest()
        assert call.finished is None
        assert call.progress.durable_unit_count == call.progress.visible_unit_count
        assert call.progress.known_frame_count == sum(
            t <= durable_s for t in TIMES_S[start_at:stop]
        )
    await push_one_by_one(client, "cam", TIMES_S)
    assert_same(read_stored(values["data_dir"], "cam"), reference)


async def test_a_push_resumed_by_another_server_gives_what_an_uninterrupted_one_gives(
    start: StartServer, values: dict[str, Any], settings: dict[str, Any], reference: Stored
) -> None:
    for stop in (20, 41, 60):
        client = await start()
        if stop == 20:
            await client.create("cam", **settings)
        call = await client.open(open_images("cam"))
        await call.send_all(images([t]) for t in TIMES_S[:stop])
        await call.send(*([FINISH] if stop == 60 else []))
        await call.half_close()
        await call.rest()
        await client.close()
    assert_same(read_stored(values["data_dir"], "cam"), reference)


async def test_a_lost_index_is_made_again_from_the_keys(
    start: StartServer, values: dict[str, Any], settings: dict[str, Any], reference: Stored
) -> None:
    client = await start()
    await client.create("cam", **settings)
    call = await client.open(open_images("cam"))
    await call.send_all(images([t]) for t in TIMES_S[:30])
    await call.half_close()
    await call.rest()
    (Path(values["data_dir"]) / "sessions" / "cam" / "index.rows").unlink()
    await push_one_by_one(client, "cam", TIMES_S)
    assert_same(read_stored(values["data_dir"], "cam"), reference)
