"""The unit table: fixed rows, then a checksum per (unit, layer), then the cells of every token.

A block's meta slice starts with the table of its units; a record of the hot tail holds the table
of one unit. Both are read by `UnitTable.parse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from kvstore.unit import Unit

ROW = np.dtype(
    [
        ("index", "<u8"),
        ("first_pts_s", "<f8"),
        ("last_pts_s", "<f8"),
        ("drop_fraction", "<f8"),
        ("thumbnail_hash", "<u8"),
        ("position_span", "<u8"),
        ("token_count", "<u4"),
        ("thumbnail_bytes", "<u4"),
        ("gap_before", "<u4"),
        ("thinned_count", "<u4"),
    ]
)
"""`thinned_count`: tokens that the unit had when it was stored and lost since, to make room."""
_CELL_BYTES = 4


def table_bytes(unit_count: int, token_count: int, layer_count: int) -> int:
    """Bytes of a table."""
    return unit_count * (ROW.itemsize + 8 * layer_count) + token_count * _CELL_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePart:
    """One unit's share of a table, packed."""

    row: bytes
    checksums: bytes
    cells: bytes

    @classmethod
    def pack(cls, unit: Unit, checksums: np.ndarray[Any, Any]) -> TablePart:
        """Pack a unit and its (layer_count,) uint64 checksums."""
        row = np.zeros(1, dtype=ROW)
        row["index"] = unit.index
        row["first_pts_s"] = unit.first_pts_s
        row["last_pts_s"] = unit.last_pts_s
        row["drop_fraction"] = unit.drop_fraction
        row["thumbnail_hash"] = xxhash.xxh3_64_intdigest(unit.thumbnail_jpeg)
        row["position_span"] = unit.position_span
        row["token_count"] = unit.token_count
        row["thumbnail_bytes"] = len(unit.thumbnail_jpeg)
        row["gap_before"] = unit.gap_before
        return cls(
            row=row.tobytes(),
            checksums=np.ascontiguousarray(checksums, dtype="<u8").tobytes(),
            cells=np.ascontiguousarray(unit.cells, dtype="<u2").tobytes(),
        )


def join_table(parts: Sequence[TablePart]) -> bytes:
    """The table of several units."""
    rows = [part.row for part in parts]
    checksums = [part.checksums for part in parts]
    return b"".join([*rows, *checksums, *(part.cells for part in parts)])


@dataclass(frozen=True, slots=True, eq=False)
class UnitTable:
    """A parsed table; arrays are views of the bytes given."""

    rows: np.ndarray[Any, Any]
    """(units,) of ROW."""
    checksums: np.ndarray[Any, Any]
    """(units, layers) uint64: XXH3-64 of each unit's [keys | values] in each layer."""
    cells: np.ndarray[Any, Any]
    """(tokens, 2) uint16."""
    token_starts: np.ndarray[Any, Any]
    """(units + 1,) int64: where each unit's tokens start in the table's units."""
    thumbnail_starts: np.ndarray[Any, Any]
    """(units + 1,) int64: where each thumbnail starts behind the table."""

    @classmethod
    def parse(cls, data: bytes, *, unit_count: int, layer_count: int) -> UnitTable:
        """Parse a table whose hash was checked.

        Raises:
            ValueError: the lengths do not fit together.
        """
        if len(data) < table_bytes(unit_count, 0, layer_count):
            raise ValueError(f"a table of {unit_count} units does not fit in {len(data)} bytes")
        rows = np.frombuffer(data, dtype=ROW, count=unit_count)
        token_starts = np.zeros(unit_count + 1, dtype=np.int64)
        np.cumsum(rows["token_count"], out=token_starts[1:])
        thumbnail_starts = np.zeros(unit_count + 1, dtype=np.int64)
        np.cumsum(rows["thumbnail_bytes"], out=thumbnail_starts[1:])
        token_count = int(token_starts[-1])
        if len(data) != table_bytes(unit_count, token_count, layer_count):
            raise ValueError(
                f"a table of {unit_count} units and {token_count} tokens is not {len(data)} bytes"
            )
        checksum_offset = unit_count * ROW.itemsize
        cell_offset = checksum_offset + 8 * unit_count * layer_count
        return cls(
            rows=rows,
            checksums=np.frombuffer(
                data, dtype="<u8", count=unit_count * layer_count, offset=checksum_offset
            ).reshape(unit_count, layer_count),
            cells=np.frombuffer(data, dtype="<u2", offset=cell_offset).reshape(token_count, 2),
            token_starts=token_starts,
            thumbnail_starts=thumbnail_starts,
        )
