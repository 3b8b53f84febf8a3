"""Several ingest processes and one Redis: one owner a session, found from any of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from svc.client import LiveSource, LookbackClient, PushFinished, PushReconnecting
from svc.registry.kept import KeptLease
from svc.video.frames import ImageItem
from tests.svc.ingest.calls import FINISH, Client, Refused, images, jpeg, open_images
from tests.svc.ingest.conftest import StartServer
from tests.svc.registry.redis_server import RedisServer

_KEY = "lookback:{cam}:session"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty Redis."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as running:
        yield running


@pytest.fixture
def registered(values: dict[str, Any], redis: RedisServer) -> dict[str, Any]:
    """Settings of servers that own sessions by leases."""
    return {"redis_url": redis.url}


async def _until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - of a server's state, of which no event tells
        await asyncio.sleep(0.02)


async def test_a_session_held_by_a_live_owner_is_refused_with_its_address_until_it_is_let_go(
    start: StartServer, registered: dict[str, Any], redis: RedisServer
) -> None:
    first, second = await start(**registered), await start(**registered)
    await first.create("cam")
    call = await first.open(open_images("cam"))
    await call.send(images([0.0, 1.0]))
    await call.until_visible(2)
    with pytest.raises(Refused) as refused:
        await second.open(open_images("cam"))
    assert refused.value.reason == "SESSION_ELSEWHERE"
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert first.address in refused.value.message
    await call.half_close()
    await call.rest()
    await _until(lambda: redis.admin().hget(_KEY, "owner") == "")
    assert redis.admin().hget(_KEY, "next") == "2"
    later = await second.open(open_images("cam"))
    assert later.opened.durable_pts_s == 1.0
    await later.send(images([2.0]), FINISH)
    await later.rest()
    await _until(lambda: redis.admin().hget(_KEY, "state") == "finished")


async def test_the_client_follows_to_the_owner_by_itself(
    start: StartServer, registered: dict[str, Any]
) -> None:
    first, second = await start(**registered), await start(**registered)
    await first.create("cam")
    call = await first.open(open_images("cam"))
    await call.send(images([0.0]))
    await call.until_visible(1)
    pictures = [ImageItem(pts_s=float(t), data=jpeg(t * 1000)) for t in range(3)]
    source = LiveSource(items=pictures)
    named: list[str] = []
    async with LookbackClient(second.address, second.address) as client:
        async for event in client.push("cam", source):
            if isinstance(event, PushReconnecting):
                named.append(event.error.metadata["address"])
                call.cancel()
    assert isinstance(event, PushFinished)
    assert event.progress.durable_unit_count == 3
    assert named[0] == first.address


async def test_sessions_of_another_store_are_found_and_their_names_are_taken(
    start: StartServer, registered: dict[str, Any], tmp_path: Path
) -> None:
    here = await start(**registered)
    there = await start(**registered, data_dir=tmp_path / "other")
    await here.create("cam")
    for method, fields in (
        ("GetSession", {"session_id": "cam"}),
        ("DeleteSession", {"session_id": "cam"}),
        ("CreateSession", {"session_id": "cam", "exist_ok": True}),
    ):
        with pytest.raises(Refused) as refused:
            await there.sessions(method, **fields)
        assert refused.value.reason == "SESSION_ELSEWHERE"
        assert here.address in refused.value.message
    with pytest.raises(Refused) as refused:
        await there.open(open_images("cam"))
    assert refused.value.reason == "SESSION_ELSEWHERE"
    with pytest.raises(Refused) as refused:
        await there.open(open_images("nobody"))
    assert refused.value.reason == "SESSION_NOT_FOUND"
    async with LookbackClient(there.address, there.address) as client:
        assert (await client.get_session("cam")).session_id == "cam"
        await client.delete_session("cam")
        await client.create_session("cam")
    with pytest.raises(Refused) as refused:
        await here.sessions("GetSession", session_id="cam")
    assert refused.value.reason == "SESSION_ELSEWHERE"


async def test_without_redis_what_is_pushed_goes_on_and_new_calls_wait_for_it(
    start: StartServer, registered: dict[str, Any], redis: RedisServer
) -> None:
    server = await start(**registered)
    await server.create("cam")
    await server.create("cam-2")
    call = await server.open(open_images("cam"))
    await call.send(images([0.0, 1.0]))
    await call.until_visible(2)
    redis.kill()
    with pytest.raises(Refused) as refused:
        await server.open(open_images("cam-2"))
    assert refused.value.reason == "REGISTRY_UNAVAILABLE"
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    await call.send(images([2.0, 3.0, 4.0, 5.0]))
    await call.until_durable(4)
    assert call.progress.durable_unit_count >= 4
    redis.start()
    await _until(lambda: redis.admin().hget(_KEY, "owner"))
    await call.send(FINISH)
    await call.rest()
    assert call.finished is not None
    await _until(lambda: redis.admin().hget(_KEY, "next") == "6")
    assert redis.admin().hget("lookback:{cam-2}:session", "state") == "live"
    later = await server.open(open_images("cam-2"))  # once no forgotten lease can run any more
    await later.send(FINISH)
    await later.rest()


async def test_a_lost_lease_ends_the_push_and_nothing_is_acknowledged_after(
    start: StartServer, registered: dict[str, Any], redis: RedisServer
) -> None:
    server = await start(**registered)
    await server.create("cam")
    call = await server.open(open_images("cam"))
    await call.send(images([0.0, 1.0]))
    await call.until_visible(2)
    epoch = int(redis.admin().hget(_KEY, "epoch") or 0)
    redis.admin().hset(_KEY, mapping={"epoch": epoch + 1, "owner": "somebody"})
    with pytest.raises(Refused) as refused:
        await call.rest()
    assert refused.value.reason == "LEASE_LOST"
    assert call.progress.durable_unit_count == 0
    assert redis.admin().hget(_KEY, "next") == "0"


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("PinSpan", {"session_id": "cam", "span": {"start_s": 0.0, "end_s": 1.0}}),
        ("UnpinSpan", {"session_id": "cam", "span": {"start_s": 0.0, "end_s": 1.0}}),
        (
            "UpdateSession",
            {
                "session": {"session_id": "cam", "display_name": "Yard"},
                "update_mask": {"paths": ["display_name"]},
            },
        ),
    ],
)
async def test_a_change_that_comes_as_a_push_ends_waits_for_its_end(
    start: StartServer,
    registered: dict[str, Any],
    redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    fields: dict[str, Any],
) -> None:
    let_go = asyncio.Event()
    release = KeptLease.release

    async def release_slowly(kept: KeptLease) -> None:
        await release(kept)
        let_go.set()
        await asyncio.sleep(0.3)  # the lease is gone, the push is still there

    monkeypatch.setattr(KeptLease, "release", release_slowly)
    server = await start(**registered)
    await server.create("cam")
    call = await server.open(open_images("cam"))
    await call.send(images([0.0]))
    await call.until_visible(1)
    await call.half_close()
    await let_go.wait()
    await server.sessions(method, **fields)
    await call.rest()
    assert redis.admin().hget(_KEY, "owner") == ""


async def test_a_registry_that_knows_of_more_than_the_disk_has_is_an_alarm(
    start: StartServer, registered: dict[str, Any], redis: RedisServer
) -> None:
    server = await start(**registered)
    await server.create("cam")
    redis.admin().hset(_KEY, "next", 5)
    with pytest.raises(Refused) as refused:
        await server.open(open_images("cam"))
    assert refused.value.reason == "STORE_DAMAGED"
    assert "5 units" in refused.value.message


async def test_an_emptied_redis_learns_of_every_session_again(
    start: StartServer, registered: dict[str, Any], redis: RedisServer
) -> None:
    server: Client = await start(**registered)
    await server.create("cam")
    call = await server.open(open_images("cam"))
    await call.send(images([0.0, 1.0]), FINISH)
    await call.rest()
    redis.admin().flushall()
    await _until(lambda: redis.admin().hget(_KEY, "next") == "2")
    assert redis.admin().hget(_KEY, "state") == "finished"
