"""What a store holds of a session, read back as QA would."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvstore.reader import SessionReader
from kvstore.session import load_session
from retrieval.index import KeyIndexReader
from svc.engine.key_rows import key_index_path


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """Everything visible of a session."""

    first_pts_s: list[float]
    last_pts_s: list[float]
    token_counts: list[int]
    gaps_before: list[bool]
    thumbnails: list[bytes]
    durable_unit_count: int
    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    row_count: int
    rows: NDArray[np.float32]
    """(units, dim): what the index holds of layer 0, read through unit queries."""
    cells: list[list[tuple[int, int]]]
    """Of each unit's tokens."""
    reduction: str
    """What the session was made with."""

    def rows_by_hand(self) -> NDArray[np.float32]:
        """(units, dim): means of the keys, of all places where a reduction keeps units whole."""
        starts = np.concatenate([[0], np.cumsum(self.token_counts)])
        latest: dict[tuple[int, int], NDArray[np.float32]] = {}
        rows = []
        for (a, b), cells in zip(pairwise(starts), self.cells, strict=True):
            if not self.reduction.startswith(("last_kept", "budget")):
                latest = {}
            latest |= dict(zip(cells, self.keys[0, a:b], strict=True))
            rows.append(np.mean(list(latest.values()), axis=0).ravel())
        return np.stack(rows)


def read_stored(root: Path, session_id: str) -> Stored:
    """Returns what is visible of a session with float32 keys and values."""
    reader = SessionReader.open(root, session_id)
    try:
        snapshot = reader.snapshot()
        geometry = reader.geometry
        assert geometry is not None
        total = int(snapshot.token_counts.sum())
        shape = (geometry.layer_count, total, geometry.kv_head_count, geometry.head_dim)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for layer in range(geometry.layer_count):
            reader.read(snapshot, layer, range(snapshot.unit_count), keys[layer], values[layer])
        cells = [
            [(int(row), int(column)) for row, column in reader.cells(snapshot, unit)]
            for unit in range(snapshot.unit_count)
        ]
        thumbnails = [reader.thumbnail(snapshot, unit) for unit in range(snapshot.unit_count)]
    finally:
        reader.close()
    index = KeyIndexReader.open(key_index_path(root, session_id))
    try:
        row_count = index.count
        units = np.eye(index.dim, dtype=np.float32)
        rows = np.stack([index.scores(0, unit, snapshot.unit_count) for unit in units], axis=1)
    finally:
        index.close()
    return Stored(
        first_pts_s=snapshot.first_pts_s.tolist(),
        last_pts_s=snapshot.last_pts_s.tolist(),
        token_counts=snapshot.token_counts.tolist(),
        gaps_before=snapshot.gaps_before.tolist(),
        thumbnails=thumbnails,
        durable_unit_count=snapshot.durable_unit_count,
        keys=keys,
        values=values,
        row_count=row_count,
        rows=rows,
        cells=cells,
        reduction=str(load_session(root, session_id).identity.get("reduction", "none")),
    )


def assert_same(actual: Stored, expected: Stored) -> None:
    """Asserts that two sessions hold the same units: times exactly, K/V within 1e-5."""
    for field in ("first_pts_s", "last_pts_s", "token_counts", "gaps_before", "thumbnails"):
        assert getattr(actual, field) == getattr(expected, field), field
    for field in ("keys", "values", "rows"):
        ours, theirs = getattr(actual, field), getattr(expected, field)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=field)
    # The rows are those of the keys, whoever wrote them.
    assert actual.cells == expected.cells
    np.testing.assert_allclose(actual.rows, actual.rows_by_hand(), rtol=1e-4, atol=1e-5)
    assert actual.row_count == len(actual.token_counts)
