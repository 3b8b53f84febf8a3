"""Thousands of lives on a disk that loses and tears sectors, with and without dropping."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvstore.budget import DiskBudget
from kvstore.limits import BlockLimits
from tests.faults.ledger import Ledger
from tests.kvstore.crash_lives import PLAIN_LIMITS, SessionLives, faulty_io, live_and_die
from tests.kvstore.thinning_lives import THIN_LIMITS, ThinnedLives, longer_lives

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
_DROPPING = replace(
    PLAIN_LIMITS, budget=DiskBudget(session_bytes=200 * 1024, on_full="drop_oldest")
)
_ROTATING = replace(PLAIN_LIMITS, segment_bytes=4096, preallocate_bytes=4096)


@pytest.mark.parametrize(
    ("what", "limits"),
    [
        ("plain", PLAIN_LIMITS),
        ("rotating", _ROTATING),
        ("dropping", _DROPPING),
        ("thinning", THIN_LIMITS),
    ],
)
def test_no_lost_or_torn_sector_costs_an_acknowledged_unit(
    ledger: Ledger, what: str, limits: BlockLimits
) -> None:
    with ledger.line(f"lives on a disk that loses sectors ({what})") as line:
        thinning = limits is THIN_LIMITS
        tally = live_and_die(
            session_count=250,
            lives_each=6,
            first_seed=50_000,
            limits=limits,
            make_io=longer_lives if thinning else faulty_io,
            kind=ThinnedLives if thinning else SessionLives,
        )
        line.fault_count += tally.lives
        line.acknowledged_count += tally.acknowledged
        # The faults were met, or the run proves nothing.
        assert tally.lives == 1500
        assert tally.failed_writers > 50
        assert tally.full_disks > 50
        assert tally.torn_tails > 20
        assert (tally.dropped > 1000) == (limits is _DROPPING)
        assert (tally.thinned > 1000) == thinning
