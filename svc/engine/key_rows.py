"""A session's representative keys: one row per unit, and the index file that holds them.

The index is derived data. Whatever a crash did to it, it is cut to what is durable and made whole
again from the stored keys.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import UnitsThinnedError
from kvstore.geometry import Geometry
from kvstore.paths import INDEX_NAME, session_folder
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from retrieval.errors import IndexDamagedError
from retrieval.index_file import Room
from retrieval.index_writer import KeyIndexWriter
from svc.engine.reduction.spec import WHOLE_EVERY_UNITS
from svc.engine.stored_kv import read_units, to_stored
from svc.engine.unit_rows import Array, UnitRows

logger = logging.getLogger(__name__)

_UNITS_PER_READ = 64


def key_index_path(root: Path, session_id: str) -> Path:
    """Return where the index of a session lies."""
    return session_folder(root, session_id) / INDEX_NAME


def _stored_units(
    reader: SessionReader, snapshot: Snapshot, geometry: Geometry, units: range
) -> list[tuple[Array, Array, NDArray[np.float32] | None]]:
    """Return (cells, keys) of units, as `UnitRows.of` takes them, and of thinned ones the mean of
    what they had kept before, all as of one moment."""
    while True:
        try:
            before = reader.mean_keys(snapshot, [u for u in units if snapshot.coarsened[u]])
            cells = [reader.cells(snapshot, unit) for unit in units]
            found = read_units(reader, snapshot, geometry, units)
        except UnitsThinnedError as error:  # to make room for this very index
            snapshot = snapshot.thinned(error.unit_indices, error.token_counts)
            continue
        return [
            (own, to_stored(kv.keys), before.get(unit))
            for unit, own, kv in zip(units, cells, found, strict=True)
        ]


def _rows_as_stored(
    reader: SessionReader, snapshot: Snapshot, rows: UnitRows, units: range
) -> list[NDArray[np.float32]]:
    """Return the units' rows, of thinned ones as they were before.

    Where rows are of all places, what a thinned unit lost resembles what was there before, which
    takes its place.
    """
    made = []
    for cells, keys, before in _stored_units(reader, snapshot, rows.geometry, units):
        row = rows.of(cells, keys)
        made.append(row if before is None or rows.all_places else before)
    return made


def _remember(reader: SessionReader, snapshot: Snapshot, rows: UnitRows, unit_count: int) -> None:
    """Take rows to where they are after so many units: since the last that was kept whole."""
    if not rows.all_places:
        return
    start, oldest = unit_count, max(snapshot.first_unit, unit_count - WHOLE_EVERY_UNITS)
    while start > oldest:
        start -= 1
        if snapshot.drop_fractions[start] == 0:
            break
    units = range(start, unit_count)
    if units:
        for cells, keys, _ in _stored_units(reader, snapshot, rows.geometry, units):
            rows.of(cells, keys)


def open_key_index(
    root: Path,
    reader: SessionReader,
    snapshot: Snapshot,
    rows: UnitRows,
    *,
    min_free_bytes: int = 0,
    room: Room | None = None,
) -> KeyIndexWriter:
    """Open the index for a writer that has just recovered the session, with a row per unit.

    Args:
        reader, snapshot: the session as recovered; every unit in the snapshot is durable.
        rows: makes them; a new one, which then goes on with the next unit.
        min_free_bytes: free bytes of the disk that growing leaves alone.
        room: asked whenever the index grows, now and later; see `KeyIndexWriter.grow_within`.

    Raises:
        KVStoreError: keys that are needed to make it whole cannot be read.
        OSError: there is no room for it.
    """
    path = key_index_path(root, reader.session_id)
    geometry = rows.geometry
    layers, dim = geometry.layer_count, geometry.kv_head_count * geometry.head_dim
    try:
        index = KeyIndexWriter.open(path, layer_count=layers, dim=dim, epoch=snapshot.epoch)
    except IndexDamagedError as error:
        if snapshot.unit_count:
            logger.warning(
                "key index is made anew",
                extra={"session": reader.session_id, "reason": error.reason},
            )
        index = KeyIndexWriter.create(path, layer_count=layers, dim=dim, epoch=snapshot.epoch)
    index.leave_free(min_free_bytes)
    if room is not None:
        index.grow_within(room)
    try:
        if index.count > snapshot.unit_count:
            index.truncate(snapshot.unit_count, snapshot.epoch)
        for _ in range(index.count, snapshot.first_unit):
            index.append(np.zeros((layers, dim), np.float32))  # dropped: never chosen
        _remember(reader, snapshot, rows, index.count)
        for start in range(index.count, snapshot.unit_count, _UNITS_PER_READ):
            units = range(start, min(start + _UNITS_PER_READ, snapshot.unit_count))
            for row in _rows_as_stored(reader, snapshot, rows, units):
                index.append(row)
    except BaseException:
        index.close()
        raise
    return index
