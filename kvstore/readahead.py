"""Reading for the next layer what this one chose, while this one computes.

Which units a layer wants is known only when the layers before it have run, so its reads cannot be
put in order beforehand. But neighbouring layers largely agree: `eval/streamworld/layer_overlap.py`.
The idea of guessing the next layer's choice from this one's is InfiniGen's (Lee et al.,
arXiv:2406.19707). A wrong guess costs a read, never an answer: what is not wanted is dropped, what
is missing is read as ever, and every slice is checked all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, wait
from functools import partial

import numpy as np

from kvstore.aligned import aligned_empty
from kvstore.encoding import Layout
from kvstore.errors import KVStoreError
from kvstore.extents import Extent, Outputs, split
from kvstore.geometry import Tier
from kvstore.reader import SessionReader
from kvstore.readpool import Reading, ReadPool
from kvstore.snapshot import Snapshot


class ReadAhead:
    """Slices of one layer that one task may want next. Used from one thread."""

    def __init__(self, reader: SessionReader, pool: ReadPool, reading: Reading) -> None:
        """Nothing is read yet; `reading` ends what `begin` began."""
        self._reader = reader
        self._pool = pool
        self._reading = reading
        self._layer = -1
        self._slices: dict[int, Future[tuple[Extent, Tier]]] = {}
        self._running: list[Future[tuple[Extent, Tier]]] = []
        self.begun_count = 0
        """Slices that were asked for ahead."""
        self.used_count = 0
        """Of those, the ones that were wanted and there."""

    def begin(
        self, snapshot: Snapshot, layer: int, units: Iterable[int], *, as_stored: bool
    ) -> None:
        """Read units of a layer that lie on disk, and forget what was read before.

        Args:
            as_stored: whether they will be wanted so, or decoded.
        """
        self._drop()
        layout, hot = self._reader.layout, snapshot.hot_tail
        if layout is None or layer >= layout.geometry.layer_count:
            return
        self._layer = layer
        for unit in units:
            if hot is None or not hot.still_holds(unit):
                task = partial(self._read, snapshot, layer, unit, layout, as_stored)
                self._slices[unit] = self._pool.submit_ahead(task)
        self.begun_count += len(self._slices)

    def take(self, layer: int, extents: Sequence[Extent]) -> dict[int, Tier]:
        """Fill what was read, and drop the rest; return the tiers by the extents' places.

        What no thread has begun to read is left to the caller, and so is what failed.
        """
        filled: dict[int, Tier] = {}
        for extent in extents if layer == self._layer else ():
            future = self._slices.get(extent.unit_index)
            if future is None or future.cancel():
                continue
            try:
                found, tier = future.result()
            except (KVStoreError, OSError):
                continue  # met again, and judged, by the read of those who want it
            if len(found.keys) != len(extent.keys):
                continue  # thinned meanwhile
            if extent.stored is not None and found.stored is not None:
                np.copyto(extent.stored, found.stored)
            else:
                np.copyto(extent.keys, found.keys)
                np.copyto(extent.values, found.values)
            filled[extent.place] = tier
        self.used_count += len(filled)
        self._drop()
        return filled

    def end(self) -> None:
        """Return when nothing is being read any more."""
        self._drop()
        wait(self._running)
        self._running = []

    def _drop(self) -> None:
        going_on = [future for future in self._slices.values() if not future.cancel()]
        self._running = [future for future in self._running + going_on if not future.done()]
        self._slices = {}
        self._layer = -1

    def _read(
        self, snapshot: Snapshot, layer: int, unit: int, layout: Layout, as_stored: bool
    ) -> tuple[Extent, Tier]:
        geometry, token_count = layout.geometry, int(snapshot.token_counts[unit])
        outputs: Outputs
        if as_stored:
            outputs = (aligned_empty((layout.extent_bytes(token_count),), np.uint8),)
        else:
            shape = (token_count, geometry.kv_head_count, geometry.head_dim)
            keys, values = aligned_empty((2, *shape), geometry.storage_dtype)
            outputs = (keys, values)
        (extent,) = split(snapshot, layout, layer, [unit], outputs)
        (tier,) = self._reader.steps.fill(snapshot, layer, [extent], reading=self._reading)
        return extent, tier
