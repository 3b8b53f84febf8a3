"""Killed outright at any moment, the process loses nothing that it acknowledged."""

from __future__ import annotations

import asyncio
import os
from itertools import takewhile
from typing import Any

import pytest

from tests.svc.ingest.calls import FINISH, Client, IngestCall, images, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.ingest.forked import ForkedServer
from tests.svc.ingest.stored import assert_same, read_stored

TIMES_S = [0.5 * i for i in range(120)]
SETTINGS = {"sample_fps": 1.0, "window_token_count": 45}


async def open_push(client: Client, session_id: str) -> IngestCall:
    await client.sessions("CreateSession", session_id=session_id, settings=SETTINGS, exist_ok=True)
    return await client.open(open_images(session_id))


async def push_and_kill(values: dict[str, Any], at_unit: int, acknowledged: int) -> int:
    """Pushes until so many units are visible, kills, and returns how many were acknowledged."""
    server = await asyncio.to_thread(ForkedServer, values)
    client = Client(server.address)
    try:
        call = await open_push(client, "cam")
        durable_s = call.opened.durable_pts_s if call.opened.HasField("durable_pts_s") else -1.0
        assert durable_s >= acknowledged - 1.0, "something acknowledged was lost"
        again = (t for t in TIMES_S if t >= durable_s - 1.0)
        wanted = takewhile(lambda _: call.progress.visible_unit_count < at_unit, again)
        await call.send_all(images([t]) for t in wanted)
        await asyncio.to_thread(server.kill)  # with a credit's worth of pictures on their way
        return max(acknowledged, call.progress.durable_unit_count)
    finally:
        server.kill()
        await client.close()


async def kills(start: StartServer, values: dict[str, Any], at_units: list[int]) -> None:
    """Kills at each of the counts, then finishes and compares with a push left alone."""
    acknowledged = 0
    for at_unit in at_units:
        acknowledged = await push_and_kill(values, at_unit, acknowledged)
    client = await start()
    for session_id in ("cam", "whole"):
        call = await open_push(client, session_id)
        await call.send_all(images([t]) for t in TIMES_S)
        await call.send(FINISH)
        await call.rest()
        assert call.finished is not None
    await client.close()
    cam, whole = (read_stored(values["data_dir"], name) for name in ("cam", "whole"))
    assert len(cam.last_pts_s) == 60
    assert_same(cam, whole)
    assert not os.listdir(values["shm_dir"]), "a hot tail was left behind"


async def test_killed_while_it_takes_video_it_loses_nothing_acknowledged(
    start: StartServer, values: dict[str, Any]
) -> None:
    await kills(start, values, [3, 20, 47])


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_killed_again_and_again_it_loses_nothing_acknowledged(
    start: StartServer, values: dict[str, Any]
) -> None:
    await kills(start, values, [1 + i for i in range(58)])
