"""A reader's growing picture of one session: columns per unit, and where their blocks lie.

Of the blocks' unit tables no more stays here: see `tablecache`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvstore.blockread import Block
from kvstore.floor import ORIGIN, Floor
from kvstore.hotview import HotTailView
from kvstore.placelist import PlaceList
from kvstore.snapshot import Snapshot

_FIRST_CAPACITY = 256


class _Column:
    """An array that grows by quarters; what was handed out stays valid and is not written again."""

    def __init__(self, dtype: str, row_shape: tuple[int, ...] = ()) -> None:
        self._data = np.zeros((_FIRST_CAPACITY, *row_shape), dtype=dtype)
        self._shared = self._read_only()

    def _read_only(self) -> np.ndarray[Any, Any]:
        view = self._data.view()
        view.flags.writeable = False
        return view

    def write(self, start: int, values: np.ndarray[Any, Any]) -> None:
        stop = start + len(values)
        if stop > len(self._data):
            row_shape = self._data.shape[1:]
            capacity = max(stop, len(self._data) + len(self._data) // 4)
            grown = np.zeros((capacity, *row_shape), dtype=self._data.dtype)
            written = self._data[:start]  # rows of what was dropped may never have been
            grown[: len(written)] = written
            self._data = grown
            self._shared = self._read_only()
        self._data[start:stop] = values

    def copy(self) -> _Column:
        """The same values, to be written over without touching what was handed out."""
        other = copy.copy(self)
        other._data = self._data.copy()
        other._shared = other._read_only()
        return other

    def first(self, count: int) -> np.ndarray[Any, Any]:
        return self._shared[:count]

    @property
    def width(self) -> int:
        return int(self._data.shape[1])

    def rows(self, indices: np.ndarray[Any, Any], column: int) -> np.ndarray[Any, Any]:
        """Of rows that were never written: 0, or anything."""
        data = self._shared
        taken: np.ndarray[Any, Any] = data[np.minimum(indices, len(data) - 1), column]
        return taken


class UnitCatalog:
    """Rows of units and blocks, appended only. A changed history takes a new catalog.

    Units that were dropped have rows, so that indices stay: before all time, and empty.
    """

    def __init__(self, floor: Floor = ORIGIN, *, keeps_checksums: bool = False) -> None:
        """Know nothing yet.

        Args:
            floor: where the session begins.
            keeps_checksums: whether `checksums` is asked for: they take 8 bytes a layer and unit.
        """
        self.floor = floor
        self.unit_count = floor.first_unit
        self.places = PlaceList()
        """Of the blocks from the floor on."""
        self._first_pts_s = _Column("f8")
        self._last_pts_s = _Column("f8")
        self._token_counts = _Column("i8")
        self._position_spans = _Column("i8")
        self._drop_fractions = _Column("f8")
        self._gaps_before = _Column("?")
        self._coarsened = _Column("?")
        # As wide as the first block says.
        self._checksums = _Column("u8", (0,)) if keeps_checksums else None
        if floor.first_unit:
            before_all_time = np.full(floor.first_unit, -np.inf)
            nothing = np.zeros(floor.first_unit, dtype=np.int64)
            self._first_pts_s.write(0, before_all_time)
            self._last_pts_s.write(0, before_all_time)
            for column in (self._token_counts, self._position_spans, self._drop_fractions):
                column.write(0, nothing)
            for flags in (self._gaps_before, self._coarsened):
                flags.write(0, nothing != 0)

    @property
    def block_count(self) -> int:
        """Blocks known so far, dropped ones included."""
        return self.floor.first_block + len(self.places)

    @property
    def durable_unit_count(self) -> int:
        """Units in the blocks known so far."""
        return self.places.stop_unit or self.floor.first_unit

    def add_rows(self, rows: np.ndarray[Any, Any]) -> None:
        """Append the rows (of table.ROW) that are not known yet; they continue the units."""
        rows = rows[self.unit_count - int(rows["index"][0]) :]
        start = self.unit_count
        self._first_pts_s.write(start, rows["first_pts_s"])
        self._last_pts_s.write(start, rows["last_pts_s"])
        self._token_counts.write(start, rows["token_count"])
        self._position_spans.write(start, rows["position_span"])
        self._drop_fractions.write(start, rows["drop_fraction"])
        self._gaps_before.write(start, rows["gap_before"] != 0)
        self._coarsened.write(start, rows["thinned_count"] != 0)
        self.unit_count += len(rows)

    def add_block(self, block: Block) -> None:
        """Append the next block and such of its units as are not known yet."""
        known_count = self.unit_count - block.header.first_unit
        if block.header.unit_count > known_count:
            self.add_rows(block.table.rows)
        checksums = block.table.checksums
        if self._checksums is not None:
            if self._checksums.width != checksums.shape[1]:
                self._checksums = _Column("u8", checksums.shape[1:])
            self._checksums.write(block.header.first_unit, checksums)
        if block.header.generation and known_count > 0:
            self._renew([block])  # known from the hot tail, and thinned before they were met here
        self.places.append(block.place)

    def checksums(self, units: np.ndarray[Any, Any], layer: int) -> np.ndarray[Any, Any]:
        """XXH3-64 of units' keys and values in a layer: (n,) uint64, of no meaning where a unit is
        in none of the blocks.
        """
        if self._checksums is None:
            raise RuntimeError("the checksums are not kept")
        return self._checksums.rows(units, layer)

    def cut(self, block_count: int) -> UnitCatalog:
        """A new catalog of the blocks before number `block_count`; snapshots of this one stay."""
        kept = copy.copy(self)
        kept.places = self.places.between(0, max(0, block_count - self.floor.first_block))
        kept.unit_count = kept.durable_unit_count
        for name, column in vars(self).items():
            if isinstance(column, _Column):
                setattr(kept, name, column.copy())
        return kept

    def raised(self, floor: Floor) -> UnitCatalog:
        """A catalog without the blocks below a floor, which goes on where this one ends.

        This one is not to be appended to any more. Rows of units that were known stay.
        """
        if self.durable_unit_count < floor.first_unit:
            return UnitCatalog(floor, keeps_checksums=self._checksums is not None)
        risen = copy.copy(self)
        risen.floor = floor
        gone = floor.first_block - self.floor.first_block
        risen.places = self.places.between(gone, len(self.places))
        return risen

    def rewritten(self, blocks: Sequence[Block]) -> UnitCatalog:
        """A catalog with other generations of some of its blocks, which goes on where this ends.

        This one is not to be appended to any more; what was handed out of it stays as it was.
        """
        renewed = copy.copy(self)
        renewed.places = self.places.replaced(block.place for block in blocks)
        renewed._renew(blocks)
        return renewed

    def _renew(self, blocks: Sequence[Block]) -> None:
        """Write over what is known of the blocks' units, in columns of their own."""
        columns = (self._token_counts, self._drop_fractions, self._coarsened)
        token_counts, drop_fractions, coarsened = (column.copy() for column in columns)
        checksums = self._checksums.copy() if self._checksums is not None else None
        for block in blocks:
            rows, start = block.table.rows, block.header.first_unit
            token_counts.write(start, rows["token_count"])
            drop_fractions.write(start, rows["drop_fraction"])
            coarsened.write(start, rows["thinned_count"] != 0)
            if checksums is not None:
                checksums.write(start, block.table.checksums)
        # Only when they are whole: others look without the lock.
        self._token_counts, self._drop_fractions = token_counts, drop_fractions
        self._coarsened, self._checksums = coarsened, checksums

    def token_counts(self, unit_count: int) -> np.ndarray[Any, Any]:
        """(unit_count,) int64 of the first units, 0 of dropped ones that were never known."""
        return self._token_counts.first(unit_count)

    def snapshot(
        self, epoch: int, unit_count: int, durable_unit_count: int, hot: HotTailView | None
    ) -> Snapshot:
        """A snapshot of the first `unit_count` units."""
        return Snapshot(
            epoch=epoch,
            unit_count=unit_count,
            durable_unit_count=min(durable_unit_count, unit_count),
            first_pts_s=self._first_pts_s.first(unit_count),
            last_pts_s=self._last_pts_s.first(unit_count),
            token_counts=self._token_counts.first(unit_count),
            position_spans=self._position_spans.first(unit_count),
            drop_fractions=self._drop_fractions.first(unit_count),
            gaps_before=self._gaps_before.first(unit_count),
            coarsened=self._coarsened.first(unit_count),
            first_unit=min(self.floor.first_unit, unit_count),
            hot_tail=hot,
        )
