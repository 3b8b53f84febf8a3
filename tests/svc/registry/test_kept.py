"""How a holder reckons its lease: a pause ends it, an outage on a locked root does not."""

from __future__ import annotations

import asyncio

import pytest

from svc.boot_time import boot_time_s
from svc.registry.errors import LeaseHeldError
from svc.registry.kept import KeptLease
from svc.registry.leases import Leases
from svc.registry.sessions import SessionDirectory
from tests.svc.registry.conftest import Connect, MakeLeases, process, until
from tests.svc.registry.redis_server import RedisServer

_LEASE_S = 10.0
_KEY = "lookback:{s}:session"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svc.registry.kept.RENEWALS_PER_LEASE", 100)


class _Clock:
    """Runs as the real one, and may be moved on as a pause does."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return boot_time_s() + self.ahead_s


async def _new_session(connect: Connect) -> None:
    directory = SessionDirectory(connect())
    await directory.reserve("s", "root-a")
    await directory.created("s", "root-a")


async def _renewed(server: RedisServer) -> None:
    """Returns when a renewal has arrived that was sent after now."""
    admin = server.admin()
    for _ in range(2):
        before = admin.hget(_KEY, "expires_ms")
        await until(lambda before=before: admin.hget(_KEY, "expires_ms") != before)


async def _take(leases: Leases, clock: _Clock, *, locked: bool) -> KeptLease:
    return await KeptLease.take(leases, "s", floor_epoch=0, root_is_locked=locked, clock_s=clock)


@pytest.mark.parametrize("locked", [True, False])
async def test_a_kept_lease_outlives_its_time_and_ends_when_given_back(
    server: RedisServer, leases_of: MakeLeases, connect: Connect, locked: bool
) -> None:
    await _new_session(connect)
    clock = _Clock()
    kept = await _take(leases_of("p", lease_s=_LEASE_S), clock, locked=locked)
    for _ in range(4):
        await _renewed(server)
        clock.ahead_s += 0.5 * _LEASE_S
        assert kept.held()
        await _renewed(server)
    with pytest.raises(LeaseHeldError):
        await leases_of("q").acquire("s", floor_epoch=0)
    await kept.release()
    assert not kept.held()
    await leases_of("q").acquire("s", floor_epoch=0)


@pytest.mark.parametrize("locked", [True, False])
async def test_a_holder_that_was_paused_has_lost_its_lease_for_good(
    leases_of: MakeLeases, connect: Connect, locked: bool
) -> None:
    await _new_session(connect)
    clock = _Clock()
    kept = await _take(leases_of("p", lease_s=60.0), clock, locked=locked)
    clock.ahead_s = 60.0
    assert not kept.held()
    clock.ahead_s = 0.0
    assert not kept.held()
    await kept.release()


async def test_a_holder_whose_lease_was_given_on_hears_of_it(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    kept = await _take(leases_of("p", lease_s=_LEASE_S), _Clock(), locked=True)
    server.admin().hset(_KEY, "epoch", kept.lease.epoch + 1)
    await kept.lost.wait()
    assert not kept.held()


async def test_without_redis_the_writer_of_a_locked_root_goes_on_and_puts_its_lease_back(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    clock = _Clock()
    kept = await _take(leases_of("p", lease_s=_LEASE_S), clock, locked=True)
    server.kill()
    await until(lambda: kept.in_outage)
    clock.ahead_s = 3600.0
    assert kept.held()
    kept.announce(7, 6.5)
    server.start()
    await until(lambda: server.admin().hget(_KEY, "next") == "7")
    assert kept.held()
    assert not kept.in_outage
    with pytest.raises(LeaseHeldError) as held:
        await leases_of("q").acquire("s", floor_epoch=0)
    assert held.value.owner == "p"
    await kept.release()


async def test_without_redis_the_writer_of_a_shared_root_stops_when_its_lease_runs_out(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    kept = await _take(leases_of("p", lease_s=0.5), _Clock(), locked=False)
    server.kill()
    assert kept.held()
    await kept.lost.wait()
    assert not kept.held()
    await kept.release()


async def test_a_pause_while_redis_is_asked_is_not_taken_for_an_outage(
    server: RedisServer, connect: Connect
) -> None:
    await _new_session(connect)
    clock = _Clock()
    leases = Leases(connect(timeout_s=0.3), process("p"), lease_s=_LEASE_S)
    kept = await _take(leases, clock, locked=True)
    # Stopped just after a renewal was sent: its time-out is noticed long after the lease's end.
    server.admin().execute_command("CLIENT", "PAUSE", "60000", "ALL")
    asked = asyncio.Event()
    renew = leases.renew

    async def renew_and_tell(lease: object) -> None:
        asked.set()
        await renew(lease)  # type: ignore[arg-type]

    leases.renew = renew_and_tell  # type: ignore[assignment]
    await asked.wait()
    clock.ahead_s = 3600.0
    await kept.lost.wait()
    assert not kept.held()


async def test_an_emptied_redis_is_told_everything_again(
    server: RedisServer, leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    kept = await _take(leases_of("p", lease_s=_LEASE_S), _Clock(), locked=False)
    kept.announce(5, 4.5)
    await until(lambda: server.admin().hget(_KEY, "next") == "5")
    server.admin().flushall()
    await until(lambda: server.admin().hget(_KEY, "owner") == "p")
    kept.announce(6, 5.5, state="finished")
    await until(lambda: server.admin().hget(_KEY, "next") == "6")
    entry = await SessionDirectory(connect()).find("s")
    assert entry is not None
    assert (entry.state, entry.durable_pts_s, entry.epoch) == ("finished", 5.5, kept.lease.epoch)
    await kept.release()
