"""Redis killed, emptied, set back, slowed, cut off: never two holders, never a wrong reply."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from svc.registry import scripts
from svc.registry.connection import Connection
from svc.registry.errors import LeaseHeldError, RegistryUnavailableError
from svc.registry.leases import Lease, Leases
from svc.registry.sessions import SessionDirectory
from tests.svc.registry.conftest import Connect, MakeLeases, process
from tests.svc.registry.redis_server import CuttingProxy, RedisServer


async def _new_session(connect: Connect) -> None:
    directory = SessionDirectory(connect())
    await directory.reserve("s", "root-a")
    await directory.created("s", "root-a")


async def test_a_killed_redis_is_an_error_and_not_an_answer(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    leases = leases_of("p")
    lease = await leases.acquire("s", floor_epoch=0)
    server.kill()
    with pytest.raises(RegistryUnavailableError):
        await leases.renew(lease)
    with pytest.raises(RegistryUnavailableError):
        await leases.acquire("s", floor_epoch=0)
    with pytest.raises(RegistryUnavailableError):
        await SessionDirectory(connect()).find("s")


async def _a_forgotten_lease_is_waited_out(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    holder, other = leases_of("holder"), leases_of("other")
    lease = await holder.acquire("s", floor_epoch=6)
    await holder.publish(lease, start_unit=0, stop_unit=5, durable_pts_s=4.5)
    server.restart()
    for _ in range(2):
        with pytest.raises(LeaseHeldError) as held:
            await other.acquire("s", floor_epoch=6)
        assert held.value.wait_s > 0
    await holder.renew(lease)
    with pytest.raises(LeaseHeldError) as held:
        await other.acquire("s", floor_epoch=6)
    assert held.value.address == "holder.example:50551"
    await holder.publish(lease, start_unit=0, stop_unit=6, durable_pts_s=5.5)
    await holder.release(lease)
    assert (await other.acquire("s", floor_epoch=6)).epoch > lease.epoch


async def test_an_emptied_redis_gives_no_lease_that_it_may_have_given_before_and_takes_it_back(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _a_forgotten_lease_is_waited_out(server, leases_of, connect)


async def test_a_redis_that_does_not_doubt_its_memory_gives_a_second_lease(
    server: RedisServer,
    leases_of: MakeLeases,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant = scripts.ACQUIRE.replace("if s.server ~= server then", "if false then")
    assert mutant != scripts.ACQUIRE
    monkeypatch.setattr(scripts, "ACQUIRE", mutant)
    with pytest.raises(pytest.fail.Exception):
        await _a_forgotten_lease_is_waited_out(server, leases_of, connect)


async def test_a_redis_set_back_to_before_the_lease_waits_it_out_too(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    early = leases_of("early", lease_s=0.01)
    await early.acquire("s", floor_epoch=0)
    server.save()
    await asyncio.sleep(0.05)
    holder = leases_of("holder")
    lease = await holder.acquire("s", floor_epoch=0)
    server.restart()
    assert (await SessionDirectory(connect()).find("s")) is not None
    for name in ("other", "early"):
        with pytest.raises(LeaseHeldError):
            await leases_of(name).acquire("s", floor_epoch=0)
    await holder.renew(lease)


async def test_nobody_claims_a_forgotten_lease_and_it_is_given_when_it_must_have_run_out(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    leases = leases_of("p", lease_s=0.05)
    with pytest.raises(LeaseHeldError) as held:
        await leases.acquire("s", floor_epoch=7)
    await asyncio.sleep(held.value.wait_s + 0.05)
    assert (await leases.acquire("s", floor_epoch=7)).epoch == 8


async def test_what_the_files_say_fills_an_empty_redis_but_not_the_lease(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    directory = SessionDirectory(connect())
    for _ in range(2):
        published = await directory.restore(
            "s", root_id="root-a", state="finished", durable_unit_count=9, durable_pts_s=8.5
        )
        assert published == 9
    entry = await directory.find("s")
    assert entry is not None
    assert (entry.root_id, entry.state, entry.published_unit_count) == ("root-a", "finished", 9)
    with pytest.raises(LeaseHeldError):
        await leases_of("p").acquire("s", floor_epoch=0)


@pytest.mark.parametrize("slow", ["CLIENT PAUSE", "DEBUG SLEEP"])
async def test_a_slow_redis_is_an_error_and_its_late_reply_is_nobodys(
    server: RedisServer, connect: Connect, slow: str
) -> None:
    await _new_session(connect)
    connection = connect(timeout_s=0.2)
    leases = Leases(connection, process("p"), lease_s=60)
    admin = server.admin()
    if slow == "CLIENT PAUSE":
        admin.execute_command("CLIENT", "PAUSE", "700", "ALL")
        sleeping = None
    else:
        sleeping = asyncio.create_task(
            asyncio.to_thread(admin.execute_command, "DEBUG", "SLEEP", "0.7")
        )
        await asyncio.sleep(0.1)
    with pytest.raises(RegistryUnavailableError):
        await leases.acquire("s", floor_epoch=0)
    if sleeping is not None:
        await sleeping
    lease = await _until_answered(leases)
    entry = await SessionDirectory(connection).find("s")
    assert entry is not None
    assert (entry.owner, entry.epoch) == ("p", lease.epoch)
    assert await leases.publish(lease, start_unit=0, stop_unit=2, durable_pts_s=1.5) == 2


async def _until_answered(leases: Leases) -> Lease:
    while True:
        try:
            return await leases.acquire("s", floor_epoch=0)
        except RegistryUnavailableError:
            await asyncio.sleep(0.05)


async def test_a_reply_that_is_cut_anywhere_is_an_error_and_the_call_can_be_made_again(
    server: RedisServer, connect: Connect, tmp_path: Path
) -> None:
    await _new_session(connect)
    async with CuttingProxy(server, tmp_path) as proxy:
        leases = Leases(Connection(proxy.url, timeout_s=5.0), process("p"), lease_s=60)
        lease = await leases.acquire("s", floor_epoch=0)
        reached, cut_count = 0, 0
        for reply_bytes in range(60):
            proxy.reply_bytes = reply_bytes
            try:
                reached = await leases.publish(
                    lease, start_unit=reached, stop_unit=reached + 1, durable_pts_s=0.5
                )
            except RegistryUnavailableError:
                cut_count += 1
                proxy.reply_bytes = None
                reached = await leases.publish(
                    lease, start_unit=reached, stop_unit=reached + 1, durable_pts_s=0.5
                )
            assert reached == reply_bytes + 1
        assert cut_count > 20
        last_epoch = lease.epoch
        for reply_bytes in range(0, 40, 3):
            proxy.reply_bytes = reply_bytes
            try:
                lease = await leases.acquire("s", floor_epoch=0)
            except RegistryUnavailableError:
                proxy.reply_bytes = None
                lease = await leases.acquire("s", floor_epoch=0)
            assert lease.epoch > last_epoch
            last_epoch = lease.epoch
    told = [int(fields["next"]) for _, fields in server.admin().xrange("lookback:{s}:events")]
    assert told == list(range(1, 61))
