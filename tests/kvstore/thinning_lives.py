"""Lives of sessions that are thinned as they go; see `crash_lives`."""

from __future__ import annotations

import random

from kvstore.budget import DiskBudget
from kvstore.geometry import Geometry
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from kvstore.writer import SessionWriter
from tests.kvstore.crash_lives import SessionLives, faulty_io
from tests.kvstore.simulated_disk import SimulatedDisk, SimulatedIO
from tests.kvstore.thinned import append_scenes, is_part_of, thinning_writer

SMALL_SCENE = Geometry(layer_count=2, kv_head_count=2, head_dim=16, element="float32")
THIN_LIMITS = BlockLimits(
    block_tokens=64,
    block_span_s=1e9,
    segment_bytes=64 * 1024,
    preallocate_bytes=4096,
    min_free_bytes=0,
    budget=DiskBudget(session_bytes=400 * 1024, on_full="thin", high_fraction=0.9),
)
"""Full after about sixteen units."""


class ThinnedLives(SessionLives):
    """What is left of a unit is part of what was appended."""

    def open(self, io: SimulatedIO) -> SessionWriter:
        return thinning_writer(self._root, limits=self._limits, io=io, geometry=SMALL_SCENE)

    def append(self, writer: SessionWriter, life: int) -> None:
        append_scenes(writer, 1, salt=life)

    def is_right(self, reader: SessionReader, snapshot: Snapshot, index: int, life: int) -> bool:
        return is_part_of(reader, snapshot, index, salt=life)


def longer_lives(disk: SimulatedDisk, rng: random.Random) -> SimulatedIO:
    """The faults of a life that may last until segments are thinned."""
    io = faulty_io(disk, rng)
    io.killed_at = rng.randrange(1, 160)
    return io
