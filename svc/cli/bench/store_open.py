"""Rows of `lookback bench store` about memory: what an open session takes for each of its units."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import closing
from pathlib import Path

import kvstore
from kvstore.geometry import Geometry
from kvstore.limits import BlockLimits
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.tablecache import TableCache
from kvstore.writer import SessionWriter
from svc.cli.bench.store_session import SEVEN_B, UNIT_TOKENS, Noise, fill
from svc.report import Row

_UNITS = 4096  # columns double: a power of two leaves none of it unused
_SHAPES = (
    # Layers and tokens count here; heads only make the files larger.
    (
        "the built-in model's",
        Geometry(layer_count=5, kv_head_count=1, head_dim=2, element="float16"),
        16,
        16,
    ),
    (
        "a 7B model's",
        Geometry(layer_count=SEVEN_B.layer_count, kv_head_count=1, head_dim=1, element="float16"),
        UNIT_TOKENS,
        8,
    ),
)


def open_rows(root: Path, unit_count: int = _UNITS) -> list[Row]:
    """Opens sessions, asks for every unit table, and counts what stays beside the cache of tables.

    Args:
        root: of a store.
        unit_count: of each session.
    """
    rows = []
    for number, (whose, geometry, unit_tokens, block_units) in enumerate(_SHAPES):
        session_id = f"open-{number}"
        limits = BlockLimits(block_tokens=block_units * unit_tokens, block_span_s=1e9)
        writer = SessionWriter.open(root, session_id, geometry=geometry, limits=limits)
        with closing(writer):
            fill(writer, Noise(geometry, unit_tokens), unit_count)
        for ram, tier in ((None, ""), (RamTier(root), ", with a RAM tier")):
            held_bytes, table_bytes = _held_and_table_bytes(root, session_id, ram)
            rows.append(
                Row(
                    name=f"open session, memory a unit of {whose} size, {block_units} in a block"
                    f"{tier}; beside its share of a unit table",
                    value=held_bytes / unit_count,
                    unit="bytes",
                    baseline=table_bytes / unit_count,
                )
            )
    return rows


def _held_and_table_bytes(root: Path, session_id: str, ram: RamTier | None) -> tuple[int, int]:
    gc.collect()
    tracemalloc.start()
    try:
        with closing(SessionReader.open(root, session_id, ram=ram, tables=TableCache(0))) as reader:
            snapshot = reader.snapshot()
            for unit in range(snapshot.unit_count):
                reader.cells(snapshot, unit)
            gc.collect()
            held_bytes = _allocated_bytes()
            table_bytes = sum(place.header.table_bytes for place in reader.places)
    finally:
        tracemalloc.stop()
    return held_bytes, table_bytes


def _allocated_bytes() -> int:
    """What the store's own lines allocated, and nobody else's meanwhile."""
    own = tracemalloc.Filter(True, str(Path(kvstore.__file__).parent / "*"))
    found = tracemalloc.take_snapshot().filter_traces([own])
    return sum(trace.size for trace in found.traces)
