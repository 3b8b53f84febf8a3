"""Many short lives on a disk that tears, loses and fails; and stores that must not survive them."""

from __future__ import annotations

import random

import pytest

from tests.kvstore.crash_lives import PromiseBrokenError, faulty_io, live_and_die
from tests.kvstore.simulated_disk import SimulatedDisk, SimulatedIO


def test_nothing_acknowledged_is_lost_changed_or_resurrected() -> None:
    tally = live_and_die(session_count=50, lives_each=6)
    # The faults were met, or the run proves nothing.
    assert tally.lives == 300
    assert tally.acknowledged > 1000
    assert tally.torn_tails > 20
    assert tally.kept_unacknowledged > 20
    assert tally.failed_writers > 10
    assert tally.full_disks > 10


_PIECES = "kvstore.diskio._PIECE_BYTES"
"""Of a page, so that the small blocks of these lives are written in pieces too."""


def _longer_lives(disk: SimulatedDisk, rng: random.Random) -> SimulatedIO:
    return SimulatedIO(disk, killed_at=rng.randrange(1, 120))


def test_nothing_acknowledged_is_lost_where_the_disk_begins_before_a_block_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_PIECES, 4096)
    tally = live_and_die(session_count=50, lives_each=6, make_io=_longer_lives)
    assert tally.acknowledged > 1000
    assert tally.torn_tails > 20


class _TakesBegunForDurable(SimulatedIO):
    def begin_write_out(self, fd: int, offset: int, length: int) -> None:
        super().fdatasync(fd)

    def fdatasync(self, fd: int) -> None:
        self._call()


def test_a_store_that_takes_a_begun_write_for_durable_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_PIECES, 4096)
    with pytest.raises(PromiseBrokenError):
        live_and_die(
            session_count=200,
            lives_each=6,
            make_io=lambda disk, rng: _TakesBegunForDurable(disk, killed_at=rng.randrange(1, 120)),
        )


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_over_thousands_of_lives() -> None:
    assert live_and_die(session_count=1000, lives_each=5, first_seed=10_000).lives == 5000


class _NeverSyncs(SimulatedIO):
    def fdatasync(self, fd: int) -> None:
        self._call()


class _SyncsLate(SimulatedIO):
    """Acknowledges first: a sync is done when the next write comes."""

    _owed: int | None = None

    def fdatasync(self, fd: int) -> None:
        self._owed = fd

    def pwritev(self, fd: int, buffers: object, offset: int) -> int:
        if self._owed is not None:
            super().fdatasync(self._owed)
            self._owed = None
        return super().pwritev(fd, buffers, offset)  # type: ignore[arg-type]


class _RetriesSync(SimulatedIO):
    def fdatasync(self, fd: int) -> None:
        try:
            super().fdatasync(fd)
        except OSError:
            super().fdatasync(fd)


class _NeverSyncsFolders(SimulatedIO):
    def fsync_folder(self, folder: object) -> None:
        self._call()


class _RecoveryDoesNotSync(SimulatedIO):
    """The tail that recovery accepts is acknowledged, though only the page cache has it."""

    def fsync(self, fd: int) -> None:
        self._call()


@pytest.mark.parametrize(
    "mutant", [_NeverSyncs, _SyncsLate, _RetriesSync, _NeverSyncsFolders, _RecoveryDoesNotSync]
)
def test_a_store_that_skips_a_sync_is_caught(mutant: type[SimulatedIO]) -> None:
    def make_io(disk: SimulatedDisk, rng: random.Random) -> SimulatedIO:
        return mutant(
            disk,
            killed_at=rng.randrange(1, 60),
            sync_fails_at=rng.randrange(1, 40) if rng.random() < 0.2 else None,
        )

    with pytest.raises(PromiseBrokenError):
        live_and_die(session_count=200, lives_each=6, make_io=make_io)


def test_a_store_that_does_not_verify_the_tail_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.scan.verify_block", lambda fd, place: None)
    with pytest.raises(PromiseBrokenError):
        live_and_die(session_count=200, lives_each=6, make_io=faulty_io)
