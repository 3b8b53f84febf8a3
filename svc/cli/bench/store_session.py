"""A session as a 7B model makes it: its shape, units of noise, and a question's reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.aligned import aligned_empty
from kvstore.directio import DiskMode
from kvstore.geometry import Geometry, Tier
from kvstore.guarded import GuardedReader
from kvstore.limits import BlockLimits
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.readpool import Reading, ReadPool
from kvstore.unit import Unit
from kvstore.writer import SessionWriter

SEVEN_B = Geometry(layer_count=28, kv_head_count=4, head_dim=128, element="float16")
"""LLaVA-OneVision on Qwen2-7B."""
UNIT_TOKENS = 196
SLICE_BYTES = 2 * UNIT_TOKENS * SEVEN_B.token_bytes
UNIT_BYTES = SEVEN_B.layer_count * SLICE_BYTES
UNITS_PER_BLOCK = 4
BLOCK_BYTES = UNITS_PER_BLOCK * UNIT_BYTES
_LIMITS = BlockLimits(block_tokens=UNITS_PER_BLOCK * UNIT_TOKENS, block_span_s=1e9)
_DISTINCT = 2  # units of noise that are made, and appended in turn


class Noise:
    """Keys and values that do not compress, made once."""

    def __init__(self, geometry: Geometry, token_count: int) -> None:
        """`token_count`: of every unit."""
        self.geometry = geometry
        self.token_count = token_count
        rng = np.random.default_rng(0)
        shape = (_DISTINCT, 2, geometry.layer_count, token_count, geometry.kv_head_count)
        numbers = rng.standard_normal((*shape, geometry.head_dim), np.float32)
        self._arrays: NDArray[Any] = numbers.astype(geometry.storage_dtype)
        side = np.arange(token_count, dtype=np.uint16)
        self._cells = np.stack([side // 14, side % 14], axis=1)

    def append(self, writer: SessionWriter, index: int) -> None:
        """Appends the unit of this index; nobody sees it before it is published."""
        unit = Unit(
            index=index,
            first_pts_s=float(index),
            last_pts_s=float(index),
            token_count=self.token_count,
            position_span=self.token_count,
            cells=self._cells,
            drop_fraction=0.0,
            gap_before=False,
            thumbnail_jpeg=b"",
        )
        keys, values = self._arrays[index % _DISTINCT]
        writer.append(unit, keys, values, resume=b"")


def open_writer(
    root: Path, session_id: str, geometry: Geometry = SEVEN_B, disk_io: DiskMode = "auto"
) -> SessionWriter:
    """Opens a session whose blocks hold four 7B units."""
    limits = replace(_LIMITS, disk_io=disk_io)
    return SessionWriter.open(root, session_id, geometry=geometry, limits=limits)


def fill(writer: SessionWriter, noise: Noise, unit_count: int) -> None:
    """Appends so many units to a new session and makes them durable."""
    for index in range(unit_count):
        noise.append(writer, index)
        writer.publish()
    writer.flush()


def write_session(
    root: Path, session_id: str, noise: Noise, unit_count: int, disk_io: DiskMode = "auto"
) -> None:
    """Writes a session of so many units, durably."""
    with closing(open_writer(root, session_id, noise.geometry, disk_io)) as writer:
        fill(writer, noise, unit_count)


class Question:
    """The reads of one question: for every layer, `top` units of its own, into two buffers."""

    def __init__(
        self,
        root: Path,
        session_id: str,
        top: int,
        token_count: int,
        disk_io: DiskMode = "auto",
        ram: RamTier | None = None,
    ) -> None:
        """Opens the session."""
        self._reader = SessionReader.open(root, session_id, disk_io=disk_io, ram=ram)
        geometry = self._reader.geometry
        assert geometry is not None
        self._geometry = geometry
        self._snapshot = self._reader.snapshot()
        self._top = min(top, self._snapshot.unit_count)
        shape = (2, 2, self._top * token_count, geometry.kv_head_count, geometry.head_dim)
        self._buffers = aligned_empty(shape, geometry.storage_dtype)  # as answers do
        self._buffers[:] = 1
        self.slice_count = geometry.layer_count * self._top
        self._tiers: list[list[Tier]] = []
        self.byte_count = 2 * geometry.layer_count * self._buffers[0, 0].nbytes

    def picks(self, rng: np.random.Generator) -> Iterator[list[int]]:
        """Draws the units of every layer, in order of time."""
        for _ in range(self._geometry.layer_count):
            drawn = rng.choice(self._snapshot.unit_count, self._top, replace=False)
            yield np.sort(drawn).tolist()

    def read(self, picks: list[list[int]], pool: ReadPool | None = None) -> None:
        """Reads and verifies all slices of a question, as an answer does; without a pool, alone."""
        reader = GuardedReader(self._reader, pool, Reading())
        for layer, units in enumerate(picks):
            keys, values = self._buffers[layer % 2]
            self._tiers.append(reader.read(self._snapshot, layer, units, keys, values))

    @property
    def tiers(self) -> set[Tier]:
        """Where slices came from so far."""
        return set().union(*self._tiers)

    def read_all(self) -> None:
        """Reads every slice of the session."""
        for start in range(0, self._snapshot.unit_count - self._top + 1, self._top):
            units = list(range(start, start + self._top))
            self.read([units] * self._geometry.layer_count)

    def close(self) -> None:
        """Closes the session."""
        self._reader.close()
