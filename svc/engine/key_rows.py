"""A session's representative keys: one row per unit, and the index file that holds them.

The index is derived data. Whatever a crash did to it, it is cut to what is durable and made whole
again from the stored keys.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvstore.errors import UnitsThinnedError
from kvstore.geometry import Geometry
from kvstore.mean_keys import mean_key
from kvstore.paths import INDEX_NAME, session_folder
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from retrieval.errors import IndexDamagedError
from retrieval.index_file import Room
from retrieval.index_writer import KeyIndexWriter
from svc.engine.stored_kv import read_units, to_stored

logger = logging.getLogger(__name__)

_UNITS_PER_READ = 64


def key_index_path(root: Path, session_id: str) -> Path:
    """Return where the index of a session lies."""
    return session_folder(root, session_id) / INDEX_NAME


def key_row(keys: Tensor) -> NDArray[np.float32]:
    """Return the row of a unit: each layer's mean key before RoPE, all heads side by side.

    Args:
        keys: (layers, n, kv_heads, head_dim), before RoPE.

    Returns:
        (layers, kv_heads * head_dim) float32.
    """
    geometry = Geometry(
        layer_count=keys.shape[0],
        kv_head_count=keys.shape[2],
        head_dim=keys.shape[3],
        element=str(keys.dtype).removeprefix("torch."),
    )
    row: NDArray[np.float32] = np.stack([mean_key(geometry, layer) for layer in to_stored(keys)])
    return row


def _rows_as_stored(
    reader: SessionReader, snapshot: Snapshot, geometry: Geometry, units: range
) -> list[NDArray[np.float32]]:
    """Return the units' rows, of thinned ones as they were before."""
    while True:
        try:
            kept = reader.mean_keys(snapshot, [u for u in units if snapshot.coarsened[u]])
            whole = [unit for unit in units if unit not in kept]
            made = read_units(reader, snapshot, geometry, whole) if whole else []
        except UnitsThinnedError as error:  # to make room for this very index
            snapshot = snapshot.thinned(error.unit_indices, error.token_counts)
            continue
        rows = kept | {unit: key_row(kv.keys) for unit, kv in zip(whole, made, strict=True)}
        return [rows[unit] for unit in units]


def open_key_index(
    root: Path,
    reader: SessionReader,
    snapshot: Snapshot,
    geometry: Geometry,
    *,
    min_free_bytes: int = 0,
    room: Room | None = None,
) -> KeyIndexWriter:
    """Open the index for a writer that has just recovered the session, with a row per unit.

    Args:
        reader, snapshot: the session as recovered; every unit in the snapshot is durable.
        min_free_bytes: free bytes of the disk that growing leaves alone.
        room: asked whenever the index grows, now and later; see `KeyIndexWriter.grow_within`.

    Raises:
        KVStoreError: keys that are needed to make it whole cannot be read.
        OSError: there is no room for it.
    """
    path = key_index_path(root, reader.session_id)
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
        for start in range(index.count, snapshot.unit_count, _UNITS_PER_READ):
            units = range(start, min(start + _UNITS_PER_READ, snapshot.unit_count))
            for row in _rows_as_stored(reader, snapshot, geometry, units):
                index.append(row)
    except BaseException:
        index.close()
        raise
    return index
