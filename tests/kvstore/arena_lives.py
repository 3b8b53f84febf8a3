"""Processes beside an arena, that tests start and kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kvstore.arena import Arena
from kvstore.arenalayout import SliceKey
from kvstore.arenaview import ArenaView

SLICE_BYTES = 64 * 1024
UNIT_COUNT = 24
_ACCEPTED_COUNT = 3000


def slice_of(unit: int) -> tuple[SliceKey, np.ndarray[Any, Any]]:
    """A slice whose every byte is its unit's, so that a torn one shows."""
    data = np.full(SLICE_BYTES, unit + 1, np.uint8)
    return SliceKey(7, unit, 0, xxhash.xxh3_64_intdigest(data.data)), data


def copy(view: ArenaView, key: SliceKey, out: np.ndarray[Any, Any]) -> bool:
    """Find and copy one slice; False when it is not there."""
    units, checksums = (np.array([word], np.uint64) for word in (key.unit_index, key.checksum))
    lengths = np.array([out.nbytes])
    found = view.find(key.session_hash, key.layer, units, checksums, lengths)
    (slot,), (generation,) = found
    return slot >= 0 and view.copy(slot, generation, out)


class CarelessView(ArenaView):
    """The mutant: it does not look at the generation of what it copied."""

    def _undisturbed(self, slot: Any, generation: Any) -> Any:
        return np.full(np.shape(slot), True)


class StuckView(ArenaView):
    """It copies, and never comes to look again."""

    _looked = False

    def _undisturbed(self, slot: Any, generation: Any) -> Any:
        if not self._looked:
            self._looked = True
            return super()._undisturbed(slot, generation)
        print("copying", flush=True)
        time.sleep(600)
        return False


def _read(view: ArenaView) -> None:
    accepted = torn = 0
    out = np.zeros(SLICE_BYTES, np.uint8)
    keys = [slice_of(unit)[0] for unit in range(UNIT_COUNT)]
    while accepted < _ACCEPTED_COUNT and not torn:
        for unit, key in enumerate(keys):
            if copy(view, key, out):
                accepted += 1
                torn += bool((out != unit + 1).any())
    print(accepted, torn, flush=True)


def _read_rows(view: ArenaView) -> None:
    """As `_read`, many slices a call."""
    accepted = torn = 0
    half = SLICE_BYTES // 2
    keys, values = np.zeros((2, UNIT_COUNT, half), np.uint8)
    wanted = [slice_of(unit)[0] for unit in range(UNIT_COUNT)]
    units = np.arange(UNIT_COUNT, dtype=np.uint64)
    checksums = np.array([key.checksum for key in wanted], np.uint64)
    lengths = np.full(UNIT_COUNT, SLICE_BYTES)
    while accepted < _ACCEPTED_COUNT and not torn:
        found = view.find(7, 0, units, checksums, lengths)
        for unit in np.flatnonzero(view.copy_halves(found, keys, values)).tolist():
            accepted += 1
            torn += bool((keys[unit] != unit + 1).any() or (values[unit] != unit + 1).any())
    print(accepted, torn, flush=True)


def _own(root: Path) -> None:
    arena = Arena.create(root, budget_bytes=512 * 1024, slot_bytes=512, shm_dir=root / "shm")
    data = np.frombuffer(np.random.default_rng(1).bytes(512), np.uint8)
    arena.keep(7, 1, [data], [xxhash.xxh3_64_intdigest(data.data)])
    print("ready", flush=True)
    time.sleep(600)


def main(arguments: Sequence[str]) -> None:
    """Lives as the first argument says, in the store of the second."""
    life, root, *rest = arguments
    if life == "owner":
        _own(Path(root))
    elif life == "stuck":
        copy(StuckView(Path(rest[0])), slice_of(0)[0], np.zeros(SLICE_BYTES, np.uint8))
    else:
        name, _, rows = life.partition("-")
        view = {"reader": ArenaView, "careless": CarelessView}[name](Path(rest[0]))
        (_read_rows if rows else _read)(view)


if __name__ == "__main__":
    main(sys.argv[1:])
