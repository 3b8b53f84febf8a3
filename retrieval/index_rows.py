"""Rows of a key index as they lie in a mapped file, and the checksums that they must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

_GATHERED_BYTES = 1 << 18
"""Rows are gathered from their layers this much at a time: it stays in the processor's cache."""


def row_check(row_index: int, row: NDArray[np.float32]) -> int:
    """Return a row's checksum; its place counts, so a row cannot pass for another.

    It is never 0, so that a row which was never written cannot pass either.

    Args:
        row_index: which row of the index it is.
        row: (layer_count, dim) float32, C-contiguous.
    """
    return xxhash.xxh3_64_intdigest(row.data, row_index) or 1


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A mapped chunk; the arrays keep the mapping alive."""

    rows: NDArray[np.float32]
    """(layer_count, chunk_row_count, dim)"""
    checks: NDArray[np.uint64]
    """(chunk_row_count,)"""

    def first_unsound(self, start: int, stop: int, *, first_row_index: int) -> int:
        """Return the first of the places [start, stop) whose row fails its checksum, else `stop`.

        `first_row_index` is the index of the chunk's first row.
        """
        layer_count, _, dim = self.rows.shape
        step = max(1, _GATHERED_BYTES // (layer_count * dim * self.rows.itemsize))
        for place in range(start, stop, step):
            end = min(place + step, stop)
            # One copy for many rows: hashing is several times faster than gathering row by row.
            rows = np.ascontiguousarray(self.rows[:, place:end].swapaxes(0, 1))
            found = [row_check(first_row_index + place + i, row) for i, row in enumerate(rows)]
            unsound = np.flatnonzero(np.array(found, np.uint64) != self.checks[place:end])
            if len(unsound):
                return place + int(unsound[0])
        return stop


def first_unsound_row(chunks: Sequence[Chunk], start: int, stop: int) -> int:
    """Return the first of the rows [start, stop) that fails its checksum; `stop` if none does.

    `chunks` begin with row 0 and are equally long.
    """
    place = start
    while place < stop:
        size = len(chunks[0].checks)  # of every chunk
        index = place // size
        first_row_index = index * size
        end = min(stop, first_row_index + size)
        place = first_row_index + chunks[index].first_unsound(
            place - first_row_index, end - first_row_index, first_row_index=first_row_index
        )
        if place < end:
            return place
    return stop
