"""Sessions that are thinned: units that look like video, and what must be left of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.budget import DiskBudget
from kvstore.encoding import Layout
from kvstore.encoding_codec import decode_extent, encode_extent
from kvstore.geometry import Geometry
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from kvstore.unit import Unit
from kvstore.writer import SessionWriter
from tests.kvstore.samples import SESSION, Sample, open_writer, read_unit, resume_blob

SCENE = Geometry(layer_count=2, kv_head_count=2, head_dim=32, element="float32")
GRID = np.array([(row, column) for row in range(4) for column in range(8)], np.uint16)
_UNIT_TOKENS = len(GRID)
BUDGET_BYTES = 2 << 20
BUDGET = DiskBudget(session_bytes=BUDGET_BYTES, on_full="thin")
THINNING = BlockLimits(
    block_tokens=4 * _UNIT_TOKENS,
    block_span_s=1e9,
    segment_bytes=1 << 20,
    preallocate_bytes=4096,
    min_free_bytes=0,
    budget=BUDGET,
)


def scene(index: int, *, salt: int = 0, geometry: Geometry = SCENE) -> Sample:
    """A unit of a still picture in which a few cells change at times; thumbnails are small."""
    picture = np.random.default_rng([salt % 1000, 1])
    rng = np.random.default_rng([salt, index])
    shape = (geometry.layer_count, _UNIT_TOKENS, geometry.kv_head_count, geometry.head_dim)
    keys = picture.standard_normal(shape) + 0.02 * rng.standard_normal(shape)
    moved = rng.random(_UNIT_TOKENS) < 0.2
    keys[:, moved] = rng.standard_normal(shape)[:, moved]
    values = rng.standard_normal(shape)
    unit = Unit(
        index=index,
        first_pts_s=float(index),
        last_pts_s=index + 0.5,
        token_count=_UNIT_TOKENS,
        position_span=_UNIT_TOKENS,
        cells=GRID,
        drop_fraction=0.0,
        gap_before=index % 5 == 0,
        thumbnail_jpeg=rng.bytes(index % 40),
    )
    return unit, elements(keys, geometry), elements(values, geometry)


def elements(numbers: np.ndarray[Any, Any], geometry: Geometry) -> np.ndarray[Any, Any]:
    """Numbers as the geometry stores them."""
    if geometry.element == "bfloat16":
        bits = numbers.astype(np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16)
    return numbers.astype(geometry.storage_dtype)


def thinning_writer(root: Path, **changes: Any) -> SessionWriter:
    """An open writer that thins from about a hundred units on."""
    limits = {"limits": THINNING, "geometry": SCENE, "hot_tail_bytes": 256 * 1024}
    return open_writer(root, **(limits | changes))


def append_scenes(writer: SessionWriter, count: int, *, salt: int = 0) -> None:
    """Append and publish the next `count` units."""
    for _ in range(count):
        index = writer.visible_unit_count
        unit, keys, values = scene(index, salt=salt, geometry=writer.geometry)
        writer.append(unit, keys, values, resume=resume_blob(index, salt))
        writer.publish()


def as_stored(layout: Layout, keys: Any, values: Any) -> tuple[Any, Any]:
    """(layers, tokens, kv_heads, head_dim) keys and values as a reader is to get them."""
    if not layout.quantised:
        return keys, values
    keys_out, values_out = np.empty_like(keys), np.empty_like(values)
    for layer in range(len(keys)):
        data = np.empty(layout.extent_bytes(keys.shape[1]), np.uint8)
        encode_extent(layout, keys[layer], values[layer], data)
        decode_extent(layout, data, keys_out[layer], values_out[layer])
    return keys_out, values_out


def is_part_of(reader: SessionReader, snapshot: Snapshot, index: int, *, salt: int = 0) -> bool:
    """Whether what the reader gives of a unit is what was appended, some tokens left out."""
    assert reader.geometry is not None
    assert reader.encoding is not None
    unit, keys, values = scene(index, salt=salt, geometry=reader.geometry)
    keys, values = as_stored(Layout(reader.geometry, reader.encoding), keys, values)
    cells = reader.cells(snapshot, index).astype(int).tolist()
    places = [row * 8 + column for row, column in cells]
    right = [
        1 <= len(places) == int(snapshot.token_counts[index]) <= unit.token_count,
        places == sorted(set(places)),
        bool(snapshot.coarsened[index]) == (len(places) < unit.token_count),
        snapshot.first_pts_s[index] == unit.first_pts_s,
        snapshot.last_pts_s[index] == unit.last_pts_s,
        snapshot.position_spans[index] == unit.position_span,
        snapshot.gaps_before[index] == unit.gap_before,
        reader.thumbnail(snapshot, index) == unit.thumbnail_jpeg,
    ]
    for layer in range(reader.geometry.layer_count):
        got_keys, got_values, _ = read_unit(reader, snapshot, index, layer)
        right.append(got_keys.tobytes() == keys[layer][places].tobytes())
        right.append(got_values.tobytes() == values[layer][places].tobytes())
    return all(right)


def check_all(root: Path, unit_count: int, *, salts: Sequence[int] = ()) -> Snapshot:
    """Check every unit with a fresh reader; return what it sees."""
    reader = SessionReader.open(root, SESSION)
    try:
        snapshot = reader.snapshot()
        assert (snapshot.first_unit, snapshot.unit_count) == (0, unit_count)
        for index in range(unit_count):
            salt = salts[index] if salts else 0
            assert is_part_of(reader, snapshot, index, salt=salt), f"unit {index}"
        return snapshot
    finally:
        reader.close()


def limits_of(session_bytes: int, **changes: Any) -> BlockLimits:
    """The limits of `thinning_writer` with another budget."""
    return replace(THINNING, budget=replace(BUDGET, session_bytes=session_bytes), **changes)
