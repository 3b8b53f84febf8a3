"""Units with contents that follow from (salt, index), so that any reader can check any byte."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.geometry import Geometry, Tier
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from kvstore.unit import Unit
from kvstore.writer import SessionWriter

SESSION = "cam-1"
FAST_FOLDER = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
SMALL = Geometry(layer_count=2, kv_head_count=2, head_dim=16, element="float32")
LIMITS = BlockLimits(
    block_tokens=24,
    block_span_s=1e9,
    segment_bytes=96 * 1024,
    preallocate_bytes=32 * 1024,
    min_free_bytes=0,
)

Sample = tuple[Unit, np.ndarray[Any, Any], np.ndarray[Any, Any]]


def sample(
    index: int, *, salt: int = 0, geometry: Geometry = SMALL, token_count: int | None = None
) -> Sample:
    """The unit of this index and its keys and values."""
    rng = np.random.default_rng([salt, index])
    count = int(rng.integers(1, 12)) if token_count is None else token_count
    shape = (geometry.layer_count, count, geometry.kv_head_count, geometry.head_dim)
    size = int(np.prod(shape)) * geometry.element_bytes
    keys, values = (
        np.frombuffer(rng.bytes(size), dtype=geometry.storage_dtype).reshape(shape)
        for _ in range(2)
    )
    unit = Unit(
        index=index,
        first_pts_s=float(index),
        last_pts_s=index + 0.5,
        token_count=count,
        position_span=count + int(rng.integers(0, 9)),
        cells=rng.integers(0, 60000, size=(count, 2)).astype(np.uint16),
        drop_fraction=float(rng.random()),
        gap_before=bool(rng.integers(0, 2)),
        thumbnail_jpeg=rng.bytes(int(rng.integers(0, 5000))),
    )
    return unit, keys, values


def resume_blob(index: int, salt: int = 0) -> bytes:
    """The blob appended with the unit of this index."""
    return np.random.default_rng([salt, index, 7]).bytes(index % 50)


def open_writer(root: Path, **changes: Any) -> SessionWriter:
    """A writer with small blocks, segments and ring, whose hot tail lies under the root."""
    shm_dir = root / "shm"
    shm_dir.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {
        "geometry": SMALL,
        "limits": LIMITS,
        "shm_dir": shm_dir,
        "hot_tail_bytes": 64 * 1024,
    }
    return SessionWriter.open(root, SESSION, **(arguments | changes))


def append(writer: SessionWriter, count: int, *, salt: int = 0) -> None:
    """Append and publish the next `count` units."""
    for _ in range(count):
        index = writer.visible_unit_count
        unit, keys, values = sample(index, salt=salt, geometry=writer.geometry)
        writer.append(unit, keys, values, resume=resume_blob(index, salt))
        writer.publish()


def kill(writer: SessionWriter) -> None:
    """End a writer of this process as kill -9 would: descriptors close, nothing else happens."""
    writer._log.abandon()
    # The mapping holds a copy of the descriptor, which would keep the lock alive.
    fcntl.flock(writer._hot._fd, fcntl.LOCK_UN)
    os.close(writer._hot._fd)
    os.close(writer._lock_fd)


def read_unit(
    reader: SessionReader, snapshot: Snapshot, index: int, layer: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Tier]:
    """Keys, values and tier of one unit in one layer."""
    keys, values, tiers = read_units(reader, snapshot, [index], layer)
    return keys, values, tiers[0]


def read_units(
    reader: SessionReader, snapshot: Snapshot, indices: Iterable[int], layer: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[Tier]]:
    """Keys, values and tiers of units in one layer."""
    geometry = reader.geometry
    assert geometry is not None
    chosen = np.array(list(indices), dtype=np.int64)
    count = int(snapshot.token_counts[chosen].sum())
    shape = (count, geometry.kv_head_count, geometry.head_dim)
    keys, values = (np.empty(shape, dtype=geometry.storage_dtype) for _ in range(2))
    tiers = reader.read(snapshot, layer, chosen, keys, values)
    return keys, values, tiers


def unit_is(reader: SessionReader, snapshot: Snapshot, index: int, *, salt: int = 0) -> bool:
    """Whether everything the reader gives of a unit is what `sample` made."""
    assert reader.geometry is not None
    unit, keys, values = sample(index, salt=salt, geometry=reader.geometry)
    if int(snapshot.token_counts[index]) != unit.token_count:
        return False
    same = [
        snapshot.first_pts_s[index] == unit.first_pts_s,
        snapshot.last_pts_s[index] == unit.last_pts_s,
        snapshot.position_spans[index] == unit.position_span,
        snapshot.drop_fractions[index] == unit.drop_fraction,
        snapshot.gaps_before[index] == unit.gap_before,
        np.array_equal(reader.cells(snapshot, index), unit.cells),
        reader.thumbnail(snapshot, index) == unit.thumbnail_jpeg,
    ]
    for layer in range(reader.geometry.layer_count):
        got_keys, got_values, _ = read_unit(reader, snapshot, index, layer)
        same.append(got_keys.tobytes() == keys[layer].tobytes())
        same.append(got_values.tobytes() == values[layer].tobytes())
    return all(same)
