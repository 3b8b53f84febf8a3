"""A follower sees every session come as far as it came, whatever the stream has lost."""

from __future__ import annotations

import asyncio

from svc.registry.announcements import Announcement, Announcements
from svc.registry.leases import Leases
from svc.registry.sessions import SessionDirectory
from tests.svc.registry.conftest import Connect, MakeLeases, until
from tests.svc.registry.redis_server import RedisServer


async def _new_session(connect: Connect) -> None:
    directory = SessionDirectory(connect())
    await directory.reserve("s", "root-a")
    await directory.created("s", "root-a")


async def _follow(connect: Connect, seen: list[Announcement], stop: int | None = None) -> None:
    async for news in Announcements(connect(), wait_s=0.1).follow("s"):
        seen.append(news)
        if news.published_unit_count == stop:
            return


async def _publish(leases: Leases, lease: object, start: int, stop: int) -> None:
    await leases.publish(
        lease,  # type: ignore[arg-type]
        start_unit=start,
        stop_unit=stop,
        durable_pts_s=stop - 0.5,
    )


async def test_a_follower_is_told_where_the_session_is_and_then_each_change_to_its_end(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    leases = leases_of("p")
    lease = await leases.acquire("s", floor_epoch=0)
    await _publish(leases, lease, 0, 3)
    seen: list[Announcement] = []
    following = asyncio.create_task(_follow(connect, seen))
    await until(lambda: seen)
    await _publish(leases, lease, 3, 4)
    await leases.publish(lease, start_unit=4, stop_unit=6, durable_pts_s=5.5, state="finished")
    await leases.delete(lease)
    await following
    assert seen[0].published_unit_count == 3
    counts = [news.published_unit_count for news in seen]
    assert counts == sorted(counts)
    assert seen[-1].published_unit_count == 6
    assert seen[-1].durable_pts_s == 5.5
    assert seen[-1].state == "deleted"


async def test_what_was_trimmed_from_the_stream_is_taken_from_the_hash(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    leases = leases_of("p")
    await leases.acquire("s", floor_epoch=0)
    seen: list[Announcement] = []
    following = asyncio.create_task(_follow(connect, seen, stop=9))
    await until(lambda: seen)
    # Published and gone from the stream before the follower has seen it.
    with server.admin().pipeline(transaction=True) as step:
        step.hset("lookback:{s}:session", mapping={"next": 9, "pts_s": "8.5"})
        step.delete("lookback:{s}:events")
        step.execute()
    await following
    assert seen[-1].published_unit_count == 9


async def test_a_follower_never_goes_back_when_redis_was_emptied(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    leases = leases_of("p")
    lease = await leases.acquire("s", floor_epoch=0)
    await _publish(leases, lease, 0, 5)
    seen: list[Announcement] = []
    following = asyncio.create_task(_follow(connect, seen, stop=6))
    await until(lambda: seen)
    with server.admin().pipeline(transaction=True) as step:
        step.delete("lookback:{s}:session", "lookback:{s}:events")
        step.hset("lookback:{s}:session", mapping={"root": "root-a", "state": "live"})
        step.execute()
    await leases.renew(lease)
    await _publish(leases, lease, 0, 6)
    await following
    counts = [news.published_unit_count for news in seen]
    assert counts == sorted(counts)


async def test_an_unknown_session_has_nothing_to_follow(connect: Connect) -> None:
    seen: list[Announcement] = []
    await _follow(connect, seen)
    assert seen == []
