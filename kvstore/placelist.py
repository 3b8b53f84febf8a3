"""Where a session's blocks lie, packed: a row a block, from which its header is made again."""

from __future__ import annotations

import dataclasses
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kvstore.blockread import BlockPlace
from kvstore.encoding import Layout
from kvstore.format import BlockHeader

_FIRST_CAPACITY = 64
_HEADER_FIELDS = tuple(field.name for field in dataclasses.fields(BlockHeader))
_ROW = np.dtype(
    [(name, "<f8" if name == "created_unix_s" else "<u8") for name in _HEADER_FIELDS]
    + [("segment_number", "<u8"), ("offset", "<u8")]
)


class SegmentPart(NamedTuple):
    """The blocks of a list that lie in one segment."""

    number: int
    generation: int
    block_count: int


class PlaceList:
    """Places of one session's blocks, one after the other, all of one layout.

    One thread appends, others may look meanwhile. A block takes 168 bytes.
    """

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._rows = np.zeros(_FIRST_CAPACITY, _ROW)
        self._hashes = array("Q")
        self._first_units = array("Q")
        self.stop_unit = 0
        """Where the last block's units end; 0 when there is none."""

    def __len__(self) -> int:
        return len(self._first_units)

    def __getitem__(self, index: int) -> BlockPlace:
        """The place of the block at an index that is not negative."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        if self._layout is None:
            raise RuntimeError("blocks without a layout")
        *fields, segment_number, offset = self._rows[index].item()
        header = BlockHeader(**dict(zip(_HEADER_FIELDS, fields, strict=True)))
        return BlockPlace(header, self._layout, segment_number, offset)

    def __iter__(self) -> Iterator[BlockPlace]:
        return (self[index] for index in range(len(self)))

    @property
    def last(self) -> BlockPlace | None:
        """The last one, if there is one."""
        return self[len(self) - 1] if len(self) else None

    def append(self, place: BlockPlace) -> None:
        """Add the place of the next block."""
        count, header = len(self), place.header
        if count == len(self._rows):
            grown = np.zeros(2 * count, _ROW)
            grown[:count] = self._rows
            self._rows = grown
        self._rows[count] = _row_of(place)
        self._layout = place.layout
        self._hashes.append(header.hash)
        # It grows last: of what is found in it, all else is there.
        self._first_units.append(header.first_unit)
        self.stop_unit = header.first_unit + header.unit_count

    def find(self, unit_index: int) -> tuple[int, int, int] | None:
        """The block that holds a unit; None: none does.

        Returns:
            Its index, the unit's position in it, and the hash of its header, which stands for
            every byte of it.
        """
        index = bisect_right(self._first_units, unit_index) - 1
        if index < 0 or unit_index >= self.stop_unit:
            return None
        return index, unit_index - self._first_units[index], self._hashes[index]

    def segments(self) -> list[SegmentPart]:
        """What lies in which segment, in order."""
        rows = self._rows[: len(self)]
        numbers, firsts, counts = np.unique(
            rows["segment_number"], return_index=True, return_counts=True
        )
        generations = rows["generation"][firsts]
        parts = zip(numbers.tolist(), generations.tolist(), counts.tolist(), strict=True)
        return [SegmentPart(*part) for part in parts]

    def between(self, start: int, stop: int) -> PlaceList:
        """A list of its own of the blocks at [start, stop)."""
        part = PlaceList()
        part._layout = self._layout
        part._hashes, part._first_units = self._hashes[start:stop], self._first_units[start:stop]
        count = len(part)
        part._rows = np.zeros(max(_FIRST_CAPACITY, count), _ROW)
        part._rows[:count] = self._rows[start : start + count]
        if count:
            last = part._rows[count - 1]
            part.stop_unit = int(last["first_unit"]) + int(last["unit_count"])
        return part

    def replaced(self, places: Iterable[BlockPlace]) -> PlaceList:
        """A list of its own, with other places of some of its blocks, which hold the same units."""
        renewed = self.between(0, len(self))
        for place in places:
            index = bisect_right(self._first_units, place.header.first_unit) - 1
            renewed._rows[index] = _row_of(place)
            renewed._hashes[index] = place.header.hash
        return renewed


def _row_of(place: BlockPlace) -> tuple[Any, ...]:
    header = (getattr(place.header, name) for name in _HEADER_FIELDS)
    return (*header, place.segment_number, place.offset)
