"""One holder at a time, later epochs for later holders, and no range acknowledged twice."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import pytest

from svc.registry import scripts
from svc.registry.errors import (
    LeaseHeldError,
    LeaseLostError,
    RangeGapError,
    SessionDeletedError,
    SessionElsewhereError,
)
from svc.registry.leases import Lease, Leases
from svc.registry.sessions import SessionDirectory
from tests.svc.registry.conftest import Connect, MakeLeases
from tests.svc.registry.redis_server import RedisServer

_LEASE_S = 0.05
_ENOUGH_UNITS = 400  # where no owner is ever refused


async def _new_session(connect: Connect, session_id: str = "s", root: str = "root-a") -> None:
    directory = SessionDirectory(connect())
    await directory.reserve(session_id, root)
    await directory.created(session_id, root)


async def _acquired(leases: Leases, floor_epoch: int = 0) -> Lease:
    while True:
        try:
            return await leases.acquire("s", floor_epoch=floor_epoch)
        except LeaseHeldError as error:
            await asyncio.sleep(error.wait_s)


@dataclass
class _Race:
    """Owners that contend for one session; each acknowledges a unit when it was published."""

    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    """(unit, epoch) in the order of the acknowledgements."""
    granted: list[int] = field(default_factory=list)
    """Epochs in the order in which they were given."""
    refused_count: int = 0

    async def own(self, leases: Leases, chance: random.Random, *, until_epochs: int) -> None:
        lease: Lease | None = None
        unit = 0
        while len(self.granted) < until_epochs and len(self.acknowledged) < _ENOUGH_UNITS:
            if lease is None:
                lease = await _acquired(leases)
                self.granted.append(lease.epoch)
                unit = lease.published_unit_count
            if chance.random() < 0.2:
                await asyncio.sleep(chance.uniform(1, 3) * _LEASE_S)
            try:
                reached = await leases.publish(
                    lease, start_unit=unit, stop_unit=unit + 1, durable_pts_s=float(unit)
                )
            except LeaseLostError:
                self.refused_count += 1
                lease = None
                continue
            self.acknowledged.append((unit, lease.epoch))
            unit = reached

    def check(self) -> None:
        units = [unit for unit, _ in self.acknowledged]
        assert len(units) == len(set(units)), "a unit was acknowledged twice"
        assert sorted(units) == list(range(len(units)))
        by_unit = [epoch for _, epoch in sorted(self.acknowledged)]
        assert by_unit == sorted(by_unit)
        assert len(self.granted) == len(set(self.granted))


async def _race(leases_of: MakeLeases, connect: Connect) -> _Race:
    await _new_session(connect)
    race = _Race()
    async with asyncio.TaskGroup() as owners:
        for index in range(4):
            owners.create_task(
                race.own(
                    leases_of(f"p{index}", lease_s=_LEASE_S),
                    random.Random(index),
                    until_epochs=25,
                )
            )
    return race


async def test_owners_that_pause_longer_than_their_lease_never_acknowledge_a_unit_twice(
    leases_of: MakeLeases, connect: Connect, server: RedisServer
) -> None:
    race = await _race(leases_of, connect)
    race.check()
    assert race.refused_count > 0, "nobody was ever too late: the race tested nothing"
    events = server.admin().xrange("lookback:{s}:events")
    told = [int(fields["next"]) for _, fields in events]
    assert told == list(range(1, len(race.acknowledged) + 1))
    epochs = [int(fields["epoch"]) for _, fields in events]
    assert epochs == sorted(epochs)


async def test_without_the_check_of_the_epoch_the_race_acknowledges_twice(
    leases_of: MakeLeases, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scripts, "PUBLISH", _without(scripts.PUBLISH, "or s.epoch ~= epoch or s.owner ~= owner")
    )
    race = await _race(leases_of, connect)
    with pytest.raises(AssertionError):
        race.check()


async def _a_running_lease_is_nobody_elses(leases_of: MakeLeases, connect: Connect) -> None:
    await _new_session(connect)
    first = leases_of("first")
    lease = await first.acquire("s", floor_epoch=0)
    with pytest.raises(LeaseHeldError) as held:
        await leases_of("second").acquire("s", floor_epoch=0)
    assert (held.value.owner, held.value.address) == ("first", "first.example:50551")
    await first.renew(lease)


async def test_a_running_lease_is_given_to_nobody_else_who_is_told_where_its_holder_is(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _a_running_lease_is_nobody_elses(leases_of, connect)


async def test_without_the_check_of_the_end_a_running_lease_is_given_away(
    leases_of: MakeLeases, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scripts, "ACQUIRE", scripts.ACQUIRE.replace("if s.expires_ms > now and", "if false and")
    )
    with pytest.raises(pytest.fail.Exception):
        await _a_running_lease_is_nobody_elses(leases_of, connect)


async def _a_lease_that_ran_out_is_given_on(leases_of: MakeLeases, connect: Connect) -> None:
    await _new_session(connect)
    lost = await leases_of("gone", lease_s=_LEASE_S).acquire("s", floor_epoch=0)
    await asyncio.sleep(4 * _LEASE_S)
    lease = await leases_of("next").acquire("s", floor_epoch=0)
    assert lease.epoch > lost.epoch


async def test_a_lease_that_ran_out_is_given_to_the_next_under_a_later_epoch(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _a_lease_that_ran_out_is_given_on(leases_of, connect)


async def test_a_lease_that_never_ends_is_caught(
    leases_of: MakeLeases, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scripts, "ACQUIRE", scripts.ACQUIRE.replace("if s.expires_ms > now and", "if true and")
    )
    with pytest.raises(LeaseHeldError):
        await _a_lease_that_ran_out_is_given_on(leases_of, connect)


async def _an_earlier_lease_of_the_same_process_is_dead(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    leases = leases_of("p")
    old = await leases.acquire("s", floor_epoch=0)
    new = await leases.acquire("s", floor_epoch=0)
    assert new.epoch > old.epoch
    with pytest.raises(LeaseLostError):
        await leases.publish(old, start_unit=0, stop_unit=1, durable_pts_s=0.0)
    with pytest.raises(LeaseLostError):
        await leases.renew(old)
    await leases.publish(new, start_unit=0, stop_unit=1, durable_pts_s=0.0)


async def test_a_process_that_asks_again_gets_a_new_epoch_and_its_old_lease_is_dead(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _an_earlier_lease_of_the_same_process_is_dead(leases_of, connect)


async def test_without_the_check_of_the_epoch_a_process_would_publish_under_its_old_lease(
    leases_of: MakeLeases, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "PUBLISH", _without(scripts.PUBLISH, "or s.epoch ~= epoch"))
    with pytest.raises(pytest.fail.Exception):
        await _an_earlier_lease_of_the_same_process_is_dead(leases_of, connect)


async def test_a_lease_given_back_is_free_at_once_and_cannot_be_used_or_revived(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    first, second = leases_of("first"), leases_of("second")
    lease = await first.acquire("s", floor_epoch=0)
    await first.release(lease)
    with pytest.raises(LeaseLostError):
        await first.renew(lease)
    with pytest.raises(LeaseLostError):
        await first.publish(lease, start_unit=0, stop_unit=1, durable_pts_s=0.0)
    assert (await second.acquire("s", floor_epoch=0)).epoch > lease.epoch


async def test_an_epoch_is_above_what_the_files_know(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    assert (await leases_of("p").acquire("s", floor_epoch=41)).epoch == 42


async def test_what_is_published_twice_counts_once_and_a_gap_is_refused(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    leases = leases_of("p")
    lease = await leases.acquire("s", floor_epoch=0)
    for _ in range(2):
        assert await leases.publish(lease, start_unit=0, stop_unit=3, durable_pts_s=2.5) == 3
    with pytest.raises(RangeGapError) as gap:
        await leases.publish(lease, start_unit=4, stop_unit=5, durable_pts_s=4.5)
    assert gap.value.next_unit == 3
    entry = await SessionDirectory(connect()).find("s")
    assert entry is not None
    assert (entry.published_unit_count, entry.durable_pts_s) == (3, 2.5)


async def test_a_session_belongs_to_one_root(leases_of: MakeLeases, connect: Connect) -> None:
    await _new_session(connect, root="root-a")
    with pytest.raises(SessionElsewhereError) as elsewhere:
        await leases_of("p", root="root-b").acquire("s", floor_epoch=0)
    assert elsewhere.value.root_id == "root-a"
    with pytest.raises(SessionElsewhereError):
        await SessionDirectory(connect()).reserve("s", "root-b")


async def test_a_deleted_session_has_no_lease_and_its_name_can_be_used_again(
    leases_of: MakeLeases, connect: Connect
) -> None:
    await _new_session(connect)
    leases = leases_of("p")
    lease = await leases.acquire("s", floor_epoch=0)
    await leases.publish(lease, start_unit=0, stop_unit=3, durable_pts_s=2.5)
    await leases.delete(lease)
    with pytest.raises(LeaseLostError):
        await leases.publish(lease, start_unit=3, stop_unit=4, durable_pts_s=3.5)
    with pytest.raises(LeaseLostError):
        await leases.renew(lease)
    with pytest.raises(SessionDeletedError):
        await leases.acquire("s", floor_epoch=0)
    await _new_session(connect, root="root-b")
    again = await leases_of("q", root="root-b").acquire("s", floor_epoch=0)
    assert again.epoch > lease.epoch
    assert again.published_unit_count == 0


async def test_the_clocks_of_the_processes_play_no_part(
    leases_of: MakeLeases, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _new_session(connect)
    first = leases_of("first")
    lease = await first.acquire("s", floor_epoch=0)
    real = time.time
    for jump_s in (-86_400.0, 86_400.0):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
        with pytest.raises(LeaseHeldError):
            await leases_of("second").acquire("s", floor_epoch=0)
        await first.renew(lease)


def _without(script: str, condition: str) -> str:
    assert condition in script
    return script.replace(condition, "")
