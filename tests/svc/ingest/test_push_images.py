"""Pushing pictures: what is sent is what is kept, and what is acknowledged is kept for good."""

from __future__ import annotations

import pytest

from tests.svc.ingest.calls import FINISH, Refused, images, open_images
from tests.svc.ingest.conftest import StartServer


async def test_a_finished_push_makes_every_sampled_picture_durable(start: StartServer) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    assert not call.opened.HasField("durable_pts_s")
    assert (call.opened.credit_item_count, call.opened.target_fps) == (16, 1.0)
    await call.send(images([0.0, 0.5, 1.0, 1.5]), images([2.0, 2.5]), FINISH)
    await call.rest()
    assert call.finished is not None
    progress = call.finished.progress
    assert (progress.visible_unit_count, progress.durable_unit_count) == (3, 3)
    assert (progress.visible_pts_s, progress.durable_pts_s) == (2.0, 2.0)
    assert progress.received_pts_s == 2.5
    assert (progress.received_frame_count, progress.sampled_frame_count) == (6, 3)
    assert progress.credit_item_count == 22
    session = (await client.sessions("GetSession", session_id="cam")).session
    assert session.state == session.STATE_FINISHED
    assert session.stats.token_count == 27


async def test_a_finished_session_takes_no_more(start: StartServer) -> None:
    client = await start()
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0]), FINISH)
    await call.rest()
    with pytest.raises(Refused) as caught:
        await client.open(open_images("cam"))
    assert caught.value.reason == "SESSION_FINISHED"
