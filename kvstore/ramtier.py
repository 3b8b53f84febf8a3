"""The RAM tier as a reader uses it: units of one layer out of whichever arena has them.

What is done for every slice is one turn of a short loop; all that can be is done for a whole layer
at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.arenaview import ArenaView, Found
from kvstore.encoding import Layout
from kvstore.encoding_codec import decode_extent, scratch_bytes
from kvstore.extents import Outputs
from kvstore.readpool import Reading, ReadPool
from kvstore.sharedfile import shared_files

_LOOK_EVERY_S = 1.0
"""How often arenas that came or went are looked for."""
_UNITS_PER_CHECK = 64
"""Copied between two looks at whether the read is still wanted, and the slots still hold them."""
_PART_BYTES = 4 << 20
"""What a thread is given at least."""
_MOST_PARTS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """Units of one layer, and where they go: (n,) arrays, one entry a unit."""

    layer: int
    layout: Layout
    units: np.ndarray[Any, Any]
    """uint64"""
    checksums: np.ndarray[Any, Any]
    """uint64, of the slices as they are stored."""
    starts: np.ndarray[Any, Any]
    """int64: a unit's first token in two arrays, its first byte in one."""
    token_counts: np.ndarray[Any, Any]
    """int64"""
    outputs: Outputs
    """Keys and values, (tokens, kv_head_count, head_dim) of the geometry's storage dtype; or one
    (bytes,) uint8 for quantised units as they are stored. C-contiguous."""


class RamTier:
    """All arenas of a store's root, found as they come and go. Safe to use from many threads."""

    def __init__(
        self, root: Path, *, shm_dir: Path | None = None, look_every_s: float = _LOOK_EVERY_S
    ) -> None:
        """Nothing is opened yet.

        Args:
            shm_dir: as the owner has it.
            look_every_s: how often to look for arenas that came or went.
        """
        self._root = root
        self._shm_dir = shm_dir
        self._look_every_s = look_every_s
        self._views: tuple[ArenaView, ...] = ()
        self._looked_s: float | None = None
        self._lock = threading.Lock()

    def fill(
        self,
        session_hash: int,
        wanted: Wanted,
        *,
        pool: ReadPool | None = None,
        reading: Reading | None = None,
    ) -> np.ndarray[Any, Any]:
        """Fill what is here, and return which units those were: (n,) bool.

        Args:
            pool: threads to share the work; None: the calling one does it.
            reading: says whether it is still wanted; None: to the end.

        Raises:
            ReadGivenUpError: `reading` says so. Nothing touches the arrays any more.
        """
        filled = np.zeros(len(wanted.units), bool)
        for view in self._current():
            tasks = [
                partial(_fill_part, view, session_hash, wanted, part, filled, reading)
                for part in _parts(wanted, shared=pool is not None)
            ]
            if pool is None:
                tasks[0]()
            else:
                pool.run(tasks)
        return filled

    def refresh(self) -> None:
        """Let go of arenas that were removed, whose memory would stay, and find new ones."""
        with self._lock:
            self._looked_s = time.monotonic()
            views = [view for view in self._views if not view.removed]
            known = {view.path for view in views}
            for path in shared_files(self._root, "ram", shm_dir=self._shm_dir):
                if path in known:
                    continue
                try:
                    views.append(ArenaView(path))
                except (FileNotFoundError, ValueError):
                    continue  # it is being made or removed: the next look tells
            self._views = tuple(views)

    def _current(self) -> tuple[ArenaView, ...]:
        looked_s = self._looked_s
        if looked_s is None or time.monotonic() - looked_s >= self._look_every_s:
            self.refresh()
        return self._views


def _parts(wanted: Wanted, *, shared: bool) -> Iterator[slice]:
    """Cut the units into runs for as many threads as are worth it."""
    byte_count = sum(array.nbytes for array in wanted.outputs)
    count = min(_MOST_PARTS, byte_count // _PART_BYTES + 1) if shared else 1
    step = -(-len(wanted.units) // count)
    stop = len(wanted.units)
    return (slice(start, min(start + step, stop)) for start in range(0, stop, step))


def _fill_part(
    view: ArenaView,
    session_hash: int,
    wanted: Wanted,
    part: slice,
    filled: np.ndarray[Any, Any],
    reading: Reading | None,
) -> None:
    layout = wanted.layout
    lengths = layout.unit_bytes + wanted.token_counts[part] * layout.token_bytes
    found = view.find(
        session_hash, wanted.layer, wanted.units[part], wanted.checksums[part], lengths
    )
    left_alone = bool(filled[part].any())
    if left_alone:
        found.slots[filled[part]] = -1  # another arena had them
    if found.slots.max() < 0:
        return
    even = not layout.quantised and bool((lengths == view.shape.stride_bytes).all())
    copy = _copy_halves if even and not left_alone else _copy_each
    for start in range(part.start, part.start + len(found.slots), _UNITS_PER_CHECK):
        if reading is not None:
            reading.check()
        batch = slice(start, min(start + _UNITS_PER_CHECK, part.stop))
        inside = slice(batch.start - part.start, batch.stop - part.start)
        filled[batch] |= copy(
            view, Found(found.slots[inside], found.generations[inside]), wanted, batch
        )


def _copy_halves(
    view: ArenaView, found: Found, wanted: Wanted, batch: slice
) -> np.ndarray[Any, Any]:
    half_bytes = view.shape.stride_bytes // 2
    keys, values = (
        array.reshape(-1).view(np.uint8).reshape(-1, half_bytes)[batch] for array in wanted.outputs
    )
    return view.copy_halves(found, keys, values)


def _copy_each(view: ArenaView, found: Found, wanted: Wanted, batch: slice) -> np.ndarray[Any, Any]:
    layout = wanted.layout
    starts, counts = wanted.starts[batch].tolist(), wanted.token_counts[batch].tolist()
    copied = np.zeros(len(starts), bool)
    for index, (slot, generation) in enumerate(zip(*found, strict=True)):
        if slot < 0:
            continue
        start, extent_bytes = starts[index], layout.extent_bytes(counts[index])
        if len(wanted.outputs) == 1:
            stored = wanted.outputs[0][start : start + extent_bytes]
            copied[index] = view.copy(slot, generation, stored)
            continue
        keys, values = (array[start : start + counts[index]] for array in wanted.outputs)
        if layout.quantised:
            data = scratch_bytes(extent_bytes)
            if view.copy(slot, generation, data):
                decode_extent(layout, data, keys, values)
                copied[index] = True
            continue
        parts = (array.reshape(-1).view(np.uint8) for array in (keys, values))
        copied[index] = view.copy(slot, generation, *parts)
    return copied
