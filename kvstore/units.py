"""A reader's growing picture of one session: columns per unit, and the blocks that hold them."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np

from kvstore.blockread import Block
from kvstore.hotview import HotTailView
from kvstore.snapshot import Snapshot

_FIRST_CAPACITY = 256


class _Column:
    """An array that doubles; what was handed out stays valid and is never written again."""

    def __init__(self, dtype: str) -> None:
        self._data = np.zeros(_FIRST_CAPACITY, dtype=dtype)
        self._shared = self._read_only()

    def _read_only(self) -> np.ndarray[Any, Any]:
        view = self._data.view()
        view.flags.writeable = False
        return view

    def write(self, start: int, values: np.ndarray[Any, Any]) -> None:
        stop = start + len(values)
        if stop > len(self._data):
            grown = np.zeros(max(stop, 2 * len(self._data)), dtype=self._data.dtype)
            grown[:start] = self._data[:start]
            self._data = grown
            self._shared = self._read_only()
        self._data[start:stop] = values

    def first(self, count: int) -> np.ndarray[Any, Any]:
        return self._shared[:count]


class UnitCatalog:
    """Rows of units and blocks, appended only. A changed history takes a new catalog."""

    def __init__(self) -> None:
        self.unit_count = 0
        self.blocks: list[Block] = []
        self._first_units: list[int] = []
        self._first_pts_s = _Column("f8")
        self._last_pts_s = _Column("f8")
        self._token_counts = _Column("i8")
        self._position_spans = _Column("i8")
        self._drop_fractions = _Column("f8")
        self._gaps_before = _Column("?")

    @property
    def durable_unit_count(self) -> int:
        """Units in the blocks known so far."""
        if not self.blocks:
            return 0
        last = self.blocks[-1].header
        return last.first_unit + last.unit_count

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
        self.unit_count += len(rows)

    def add_block(self, block: Block) -> None:
        """Append the next block and such of its units as are not known yet."""
        if block.header.first_unit + block.header.unit_count > self.unit_count:
            self.add_rows(block.table.rows)
        self.blocks.append(block)
        self._first_units.append(block.header.first_unit)

    def find(self, unit_index: int) -> tuple[Block, int] | None:
        """The block that holds a unit and the unit's position in it; None when not durable."""
        # _first_units grows last, so an index found in it is in blocks.
        found = bisect_right(self._first_units, unit_index) - 1
        if found < 0:
            return None
        block = self.blocks[found]
        position = unit_index - block.header.first_unit
        return (block, position) if position < block.header.unit_count else None

    def cut(self, block_count: int) -> UnitCatalog:
        """A new catalog of the first blocks; this one, and snapshots of it, stay as they are."""
        kept = UnitCatalog()
        for block in self.blocks[:block_count]:
            kept.add_block(block)
        return kept

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
            hot_tail=hot,
        )
