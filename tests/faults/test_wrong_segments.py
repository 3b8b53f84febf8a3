"""Segments that are cut short, doubled, swapped, or of another history of the session.

The stores without the chain, without epochs and without the floor record, which must be caught, are
in `tests/kvstore`: `test_ghosts.py`, `test_takeover.py` and `test_dropping.py`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.errors import KVStoreError
from kvstore.paths import CONTROL_NAME, segment_numbers, segment_path, session_folder
from kvstore.reader import SessionReader
from tests.faults.ledger import Ledger
from tests.kvstore.samples import SESSION, append, open_writer, unit_is

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_UNIT_COUNT = 50
_TIMES = 60


def _write(root: Path, *, salt: int = 0, unit_count: int = _UNIT_COUNT) -> Path:
    writer = open_writer(root)
    append(writer, unit_count - writer.visible_unit_count, salt=salt)
    writer.flush()
    writer.close()
    return session_folder(root, SESSION)


def _any(folder: Path, rng: random.Random) -> Path:
    return segment_path(folder, rng.choice(segment_numbers(folder)))


def _cut_short(folder: Path, others: Path, rng: random.Random) -> None:
    path = _any(folder, rng)
    with open(path, "r+b") as file:
        file.truncate(rng.randrange(path.stat().st_size))


def _doubled_at_the_end(folder: Path, others: Path, rng: random.Random) -> None:
    shutil.copy(_any(folder, rng), segment_path(folder, segment_numbers(folder)[-1] + 1))


def _doubled_over_another(folder: Path, others: Path, rng: random.Random) -> None:
    one, other = rng.sample(segment_numbers(folder), 2)
    shutil.copy(segment_path(folder, one), segment_path(folder, other))


def _swapped(folder: Path, others: Path, rng: random.Random) -> None:
    one, other = (segment_path(folder, n) for n in rng.sample(segment_numbers(folder), 2))
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def _of_another_history(folder: Path, others: Path, rng: random.Random) -> None:
    """Of a session of the same name and shape: only the chain tells them apart."""
    path = _any(folder, rng)
    if (others / path.name).exists():
        shutil.copy(others / path.name, path)


def _of_another_history_at_the_end(folder: Path, others: Path, rng: random.Random) -> None:
    shutil.copy(_any(others, rng), segment_path(folder, segment_numbers(folder)[-1] + 1))


_MISHAPS: list[Callable[[Path, Path, random.Random], None]] = [
    _cut_short,
    _doubled_at_the_end,
    _doubled_over_another,
    _swapped,
    _of_another_history,
    _of_another_history_at_the_end,
]


@pytest.mark.parametrize("with_control", [True, False])
@pytest.mark.parametrize("mishap", _MISHAPS)
def test_a_wrong_segment_is_an_error_or_changes_nothing(
    ledger: Ledger,
    root: Path,
    mishap: Callable[[Path, Path, random.Random], None],
    with_control: bool,
) -> None:
    """Without the control page the last block is unproven: all before it are there, or an error."""
    name = mishap.__name__.strip("_").replace("_", " ")
    with ledger.line(f"segment {name}{'' if with_control else ', no control page'}") as line:
        whole = _write(root / "whole")
        others = _write(root / "others", salt=5)
        last_block_count = 12  # units that the last segment may hold at most, see LIMITS
        for time in range(_TIMES):
            folder = session_folder(root / f"{time}", SESSION)
            shutil.copytree(whole, folder)
            if not with_control:
                (folder / CONTROL_NAME).unlink()
            mishap(folder, others, random.Random(time))
            line.fault_count += 1
            line.acknowledged_count += _UNIT_COUNT
            try:
                reader = SessionReader.open(root / f"{time}", SESSION)
            except KVStoreError:
                continue
            try:
                snapshot = reader.snapshot()
                for index in range(snapshot.unit_count):
                    assert unit_is(reader, snapshot, index), f"unit {index} has other bytes"
                    line.checked_count += 1
                if with_control:
                    assert snapshot.unit_count == _UNIT_COUNT
                assert snapshot.unit_count >= _UNIT_COUNT - last_block_count
            except KVStoreError:
                pass
            finally:
                reader.close()
                shutil.rmtree(root / f"{time}")
