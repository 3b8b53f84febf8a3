"""Reading keys and values of units straight from segment files into the caller's arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple

import numpy as np

from kvstore.blockread import Block
from kvstore.encoding import Layout
from kvstore.encoding_codec import decode_extent, scratch_bytes
from kvstore.errors import SliceCorruptError
from kvstore.geometry import Geometry
from kvstore.hotview import kv_checksum
from kvstore.segmentfiles import OpenFile, SegmentFiles
from kvstore.snapshot import Snapshot

# Linux takes at most 1024 buffers per call; a unit needs two.
_UNITS_PER_READ = 512
# What is decoded is read into a buffer of the thread's first, which stays.
_SCRATCH_BYTES = 4 << 20


class Extent(NamedTuple):
    """One unit's share of the caller's arrays."""

    place: int
    """Position in the caller's list."""
    unit_index: int
    keys: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    """Decoded; (tokens, 0, 0) both where the unit is wanted as it is stored."""
    stored: np.ndarray[Any, Any] | None = None
    """(bytes,) uint8 for a quantised unit as it is stored."""


Outputs = tuple[np.ndarray[Any, Any], ...]
"""What a caller gives to be filled: keys and values, or one array for units as they are stored."""
Located = tuple[Extent, tuple[Block, int]]


def check_outputs(
    snapshot: Snapshot,
    geometry: Geometry | None,
    layer: int,
    unit_indices: Iterable[int],
    keys_out: np.ndarray[Any, Any],
    values_out: np.ndarray[Any, Any],
) -> list[Extent]:
    """Split the caller's arrays into the units asked for.

    Raises:
        ValueError: an index or a shape is outside what the snapshot has.
    """
    indices = [int(index) for index in unit_indices]
    if indices and not (min(indices) >= 0 and max(indices) < snapshot.unit_count):
        raise ValueError(f"units must be in [0, {snapshot.unit_count}), got {indices}")
    if not indices:
        return []
    if geometry is None or not 0 <= layer < geometry.layer_count:
        raise ValueError(f"layer {layer} is outside {geometry}")
    counts = snapshot.token_counts[indices].tolist()
    expected = (sum(counts), geometry.kv_head_count, geometry.head_dim)
    for name, array in (("keys_out", keys_out), ("values_out", values_out)):
        if array.shape != expected or array.dtype != geometry.storage_dtype:
            raise ValueError(
                f"{name} must be {expected} {geometry.storage_dtype}, "
                f"got {array.shape} {array.dtype}"
            )
        if not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError(f"{name} must be C-contiguous and writeable")
    extents, start = [], 0
    for place, (index, count) in enumerate(zip(indices, counts, strict=True)):
        stop = start + count
        extents.append(Extent(place, index, keys_out[start:stop], values_out[start:stop]))
        start = stop
    return extents


def check_stored(
    snapshot: Snapshot,
    layout: Layout | None,
    layer: int,
    unit_indices: Iterable[int],
    out: np.ndarray[Any, Any],
) -> list[Extent]:
    """Split the caller's array into the units asked for, as they are stored.

    Raises:
        ValueError: an index or the shape is outside what the snapshot has, or units are not stored
            quantised.
    """
    indices = [int(index) for index in unit_indices]
    if indices and not (min(indices) >= 0 and max(indices) < snapshot.unit_count):
        raise ValueError(f"units must be in [0, {snapshot.unit_count}), got {indices}")
    if layout is None or not layout.quantised or not 0 <= layer < layout.geometry.layer_count:
        raise ValueError(f"layer {layer} is not one of quantised units in {layout}")
    counts = snapshot.token_counts[indices].tolist()
    expected = (layout.extent_bytes(sum(counts), len(counts)),)
    if out.shape != expected or out.dtype != np.uint8:
        raise ValueError(f"out must be {expected} uint8, got {out.shape} {out.dtype}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be C-contiguous and writeable")
    extents, start = [], 0
    for place, (index, count) in enumerate(zip(indices, counts, strict=True)):
        stop = start + layout.extent_bytes(count)
        nothing = np.empty((count, 0, 0), layout.geometry.storage_dtype)
        extents.append(Extent(place, index, nothing, nothing, out[start:stop]))
        start = stop
    return extents


def split(
    snapshot: Snapshot,
    layout: Layout | None,
    layer: int,
    unit_indices: Iterable[int],
    outputs: Outputs,
) -> list[Extent]:
    """Split what the caller gave by `check_outputs` or `check_stored`, and raise as they do."""
    if len(outputs) == 1:
        return check_stored(snapshot, layout, layer, unit_indices, outputs[0])
    geometry = layout.geometry if layout else None
    return check_outputs(snapshot, geometry, layer, unit_indices, *outputs)


def unpack(layout: Layout, data: np.ndarray[Any, Any], extent: Extent) -> None:
    """Fill an extent from (bytes,) uint8 as they are stored, verified."""
    if extent.stored is not None:
        extent.stored[:] = data
        return
    if layout.quantised:
        decode_extent(layout, data, extent.keys, extent.values)
        return
    half = extent.keys.nbytes
    extent.keys.reshape(-1).view(np.uint8)[:] = data[:half]
    extent.values.reshape(-1).view(np.uint8)[:] = data[half:]


def _units_per_read(layout: Layout, token_count: int) -> int:
    """How many units like one of `token_count` tokens are read at once."""
    if not layout.quantised:
        return _UNITS_PER_READ
    return max(_SCRATCH_BYTES // layout.extent_bytes(token_count), 1)


def _stored_parts(run: Sequence[Located]) -> list[list[np.ndarray[Any, Any]]]:
    """Where each unit's stored bytes are read to: the caller's arrays, or a buffer before them."""
    _, (block, _) = run[0]
    layout = block.place.layout
    if not layout.quantised:
        return [[extent.keys, extent.values] for extent, _ in run]
    if run[0][0].stored is not None:  # then all are
        return [[extent.stored] for extent, _ in run if extent.stored is not None]
    sizes = [layout.extent_bytes(len(extent.keys)) for extent, _ in run]
    data = scratch_bytes(sum(sizes))
    return [[part] for part in np.split(data, np.cumsum(sizes)[:-1])]


def _runs(located: Sequence[Located]) -> Iterator[list[Located]]:
    """Cut the list where the next unit does not lie directly behind the one before."""
    run: list[Located] = []
    last: Block | None = None
    behind = most = 0
    for item in located:
        extent, (block, position) = item
        if block is last and position == behind and len(run) < most:
            run.append(item)
        else:
            if run:
                yield run
            run = [item]
            most = _units_per_read(block.place.layout, len(extent.keys))
        last, behind = block, position + 1
    if run:
        yield run


def _segment_of(run: Sequence[Located]) -> int:
    _, (block, _) = run[0]
    return block.place.segment_number


def read_runs(
    session_id: str,
    files: SegmentFiles,
    layer: int,
    located: Sequence[Located],
) -> None:
    """Fill every extent from its block and verify it; neighbours share a system call.

    Raises:
        SliceCorruptError: the bytes are not those that were written, or the disk failed.
        FileNotFoundError: the segment is gone.
    """
    for number, group in groupby(_runs(located), _segment_of):
        runs = list(group)  # what is read drives the interpreter from the processor's cache
        with files.lend(number) as file:
            for run in runs:
                _read_run(session_id, file, layer, run)


def _read_run(session_id: str, file: OpenFile, layer: int, run: Sequence[Located]) -> None:
    """Fill the extents of neighbours and verify each while it lies in the processor's cache."""
    first, (block, position) = run[0]
    layout = block.place.layout
    quantised, checksum = layout.quantised, block.table.checksums.item
    stored = _stored_parts(run)
    arrays = list(chain.from_iterable(stored))
    try:
        read_bytes = file.read(arrays, block.extent_offset(layer, position))
    except OSError as error:
        raise SliceCorruptError(
            session_id, block.header.sequence, first.unit_index, layer, unreadable=True
        ) from error
    for (extent, (_, position)), parts in zip(run, stored, strict=True):
        for part in parts:
            read_bytes -= part.nbytes
        if read_bytes < 0 or kv_checksum(*parts) != checksum(position, layer):
            raise SliceCorruptError(session_id, block.header.sequence, extent.unit_index, layer)
        if quantised and extent.stored is None:
            decode_extent(layout, parts[0], extent.keys, extent.values)
