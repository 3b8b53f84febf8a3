"""One session's units out of the RAM tier: what of a snapshot may be looked for there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvstore.encoding import Layout
from kvstore.extents import Outputs
from kvstore.paths import session_hash
from kvstore.ramtier import RamTier, Wanted
from kvstore.readpool import Reading, ReadPool
from kvstore.snapshot import Snapshot
from kvstore.tracking import SessionTracker


class RamReads:
    """The RAM tier as a session's reader uses it. Safe to use from many threads."""

    def __init__(self, session_id: str, tracker: SessionTracker, ram: RamTier) -> None:
        """Share the tracker with its reader."""
        self._hash = session_hash(session_id)
        self._tracker = tracker
        self._ram = ram

    def recall(
        self,
        snapshot: Snapshot,
        layer: int,
        units: Sequence[int],
        outputs: Outputs,
        *,
        pool: ReadPool | None = None,
        reading: Reading | None = None,
    ) -> list[bool]:
        """Fill what the RAM tier has; say of each unit whether it did.

        What `kvstore.extents.split` would refuse is left to it: nothing is filled then. Of
        a unit that was thinned after the snapshot nothing is found: the slice that is there now is
        shorter than the snapshot says.

        Args:
            snapshot: of the session.
            layer: that is read.
            units: of the snapshot, in the order of the arrays.
            outputs: keys and values as `SessionReader.read` takes them, or what `read_stored` does.
            pool: threads to share the work; None: the calling one does it.
            reading: says whether it is still wanted; None: to the end.

        Raises:
            ReadGivenUpError: `reading` says so. Nothing touches the arrays any more.
        """
        nothing = [False] * len(units)
        layout, catalog = self._tracker.layout, self._tracker.catalog
        if layout is None or not units:
            return nothing
        indices = np.array(units, np.int64)
        first_unit = max(snapshot.first_unit, catalog.floor.first_unit)
        if indices.min() < first_unit or indices.max() >= snapshot.unit_count:
            return nothing
        counts = snapshot.token_counts[indices]
        # Of one array a unit takes its bytes, of two its tokens.
        sizes = counts if len(outputs) == 2 else layout.unit_bytes + counts * layout.token_bytes
        stops = np.cumsum(sizes)
        if not _fits(layout, layer, int(stops[-1]), outputs):
            return nothing
        # What was durable then is of the same bytes in every later epoch.
        known = indices < min(snapshot.durable_unit_count, catalog.durable_unit_count)
        if snapshot.hot_tail is not None:
            known &= indices < snapshot.hot_tail.floor
        if not known.any():
            return nothing
        wanted = Wanted(
            layer=layer,
            layout=layout,
            units=indices.astype(np.uint64),
            checksums=catalog.checksums(indices, layer),
            starts=stops - sizes,
            token_counts=counts,
            outputs=outputs,
        )
        filled = self._ram.fill(self._hash, wanted, pool=pool, reading=reading)
        here: list[bool] = (filled & known).tolist()
        return here


def _fits(layout: Layout, layer: int, size: int, outputs: Outputs) -> bool:
    """Whether the caller's arrays are what `kvstore.extents.split` accepts; `size`: their rows."""
    geometry = layout.geometry
    shape: tuple[int, ...] = (size, geometry.kv_head_count, geometry.head_dim)
    dtype = geometry.storage_dtype
    if len(outputs) == 1:
        if not layout.quantised:
            return False
        shape, dtype = (size,), np.dtype(np.uint8)
    return 0 <= layer < geometry.layer_count and all(
        array.shape == shape
        and array.dtype == dtype
        and array.flags.c_contiguous
        and array.flags.writeable
        for array in outputs
    )
