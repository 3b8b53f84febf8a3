"""Stopping: clients are told, what is visible becomes durable, nobody is waited for too long."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tests.svc.ingest.calls import Refused, images, open_images
from tests.svc.ingest.conftest import StartServer


async def test_a_drain_tells_the_client_and_makes_durable_what_is_visible(
    start: StartServer,
) -> None:
    client = await start(block_span_s=1000.0)
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0, 2.0]))
    await call.until_visible(3)
    assert call.progress.durable_unit_count == 0
    stopping = asyncio.create_task(client.stop_server())
    await call.until_durable(3)
    assert call.draining is not None
    assert 0 < call.draining.grace.ToMilliseconds() <= 4000
    with pytest.raises(Refused) as caught:
        await client.open(open_images("cam"))
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    await call.half_close()
    await call.rest()
    assert call.finished is None
    assert await stopping


async def test_a_client_that_ignores_a_drain_is_cut_with_a_reason(start: StartServer) -> None:
    client = await start(drain_s=0.6)
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0]))
    await call.until_visible(2)
    stopping = asyncio.create_task(client.stop_server())
    with pytest.raises(Refused) as caught:
        await call.rest()
    assert (caught.value.reason, caught.value.code) == (
        "DRAINING",
        grpc.StatusCode.UNAVAILABLE,
    )
    assert call.progress.durable_unit_count == 2
    assert await stopping


async def test_what_is_visible_becomes_durable_when_nothing_more_comes(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svc.ingest.push.IDLE_FLUSH_S", 0.05)
    client = await start(block_span_s=1000.0)
    await client.create("cam")
    call = await client.open(open_images("cam"))
    await call.send(images([0.0, 1.0, 2.0]))
    await call.until_durable(3)
    assert call.draining is None
