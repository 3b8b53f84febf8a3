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


class CarelessView(ArenaView):
    """The mutant: it does not look again at what it copied."""

    def _undisturbed(self, slot: int, generation: int) -> bool:
        return True


class StuckView(ArenaView):
    """It copies, and never comes to look again."""

    def _undisturbed(self, slot: int, generation: int) -> bool:
        print("copying", flush=True)
        time.sleep(600)
        return False


def _read(view: ArenaView) -> None:
    accepted = torn = 0
    out = np.zeros(SLICE_BYTES, np.uint8)
    keys = [slice_of(unit)[0] for unit in range(UNIT_COUNT)]
    while accepted < _ACCEPTED_COUNT and not torn:
        for unit, key in enumerate(keys):
            if view.copy(key, [out.data]):
                accepted += 1
                torn += bool((out != unit + 1).any())
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
        StuckView(Path(rest[0])).copy(slice_of(0)[0], [np.zeros(SLICE_BYTES, np.uint8).data])
    else:
        _read({"reader": ArenaView, "careless": CarelessView}[life](Path(rest[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
