"""The RAM tier at half of what is asked of it, for long, with readers at work.

The tier that does not look at a slot's generation again, which must be caught, is in
tests/kvstore/test_arena.py.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from kvstore.arena import Arena
from kvstore.encoding import Layout
from kvstore.errors import KVStoreError
from kvstore.hottail import file_bytes
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from tests.faults.ledger import Ledger, Line
from tests.kvstore.samples import SESSION, SMALL, append, open_writer, unit_is

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_KIB = 1024
_UNIT_COUNT = 1200
_READER_COUNT = 3


class _Reader:
    """A thread that compares units while they move from tier to tier."""

    def __init__(self, root: Path, seed: int) -> None:
        self._reader = SessionReader.open(root, SESSION, ram=RamTier(root, shm_dir=root / "shm"))
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.checked_count = 0
        self.wrong: list[str] = []
        self._thread.start()

    def _read(self) -> None:
        while not self._over.is_set() and not self.wrong:
            snapshot = self._reader.snapshot()
            if snapshot.unit_count:
                # Half of them where units leave memory for the disk.
                newest = snapshot.unit_count - 1
                oldest = self._rng.choice([0, max(0, newest - 150)])
                index = self._rng.randint(oldest, newest)
                try:
                    right = unit_is(self._reader, snapshot, index)
                except KVStoreError as error:
                    self.wrong.append(repr(error))
                    return
                if not right:
                    self.wrong.append(f"unit {index} has other bytes")
                self.checked_count += 1

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self._reader.close()


def test_memory_at_half_of_what_is_wanted_serves_no_wrong_byte(ledger: Ledger, root: Path) -> None:
    """Every unit is compared while others push it out, and all of them at the end."""
    with ledger.line("evictions at 2x overcommit") as line:
        (root / "shm").mkdir()
        budget = file_bytes(64 * _KIB) + 200 * _KIB
        arena = Arena.create(
            root,
            budget_bytes=budget,
            slot_bytes=Layout(SMALL).extent_bytes(12),
            shm_dir=root / "shm",
        )
        writer = open_writer(root, arena=arena)
        readers = [_Reader(root, seed) for seed in range(_READER_COUNT)]
        try:
            for _ in range(_UNIT_COUNT):
                append(writer, 1)
        finally:
            for each in readers:
                each.end()
        assert [each.wrong for each in readers] == [[]] * _READER_COUNT
        writer.flush()
        line.checked_count += sum(each.checked_count for each in readers)
        _compare_all(root, line)
        held = arena.slice_count
        assert held <= arena.shape.slot_count
        line.fault_count += SMALL.layer_count * _UNIT_COUNT - held
        line.acknowledged_count += writer.durable_unit_count
        writer.close()
        arena.close()


def _compare_all(root: Path, line: Line) -> None:
    reader = SessionReader.open(root, SESSION, ram=RamTier(root, shm_dir=root / "shm"))
    snapshot = reader.snapshot()
    for index in range(_UNIT_COUNT):
        assert unit_is(reader, snapshot, index), f"unit {index} has other bytes"
        line.checked_count += 1
    reader.close()
