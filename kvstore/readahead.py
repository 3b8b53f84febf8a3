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

from kvstore.errors import KVStoreError
from kvstore.extents import Extent, check_outputs
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

    def begin(self, snapshot: Snapshot, layer: int, units: Iterable[int]) -> None:
        """Read units of a layer that lie on disk, and forget what was read before."""
        self._drop()
        geometry, hot = self._reader.geometry, snapshot.hot_tail
        if geometry is None or layer >= geometry.layer_count:
            return
        self._layer = layer
        for unit in units:
            if hot is None or not hot.still_holds(unit):
                task = partial(self._read, snapshot, layer, unit)
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

    def _read(self, snapshot: Snapshot, layer: int, unit: int) -> tuple[Extent, Tier]:
        geometry = self._reader.geometry
        if geometry is None:
            raise RuntimeError("a unit of a session without a writer")
        shape = (int(snapshot.token_counts[unit]), geometry.kv_head_count, geometry.head_dim)
        keys = np.empty(shape, geometry.storage_dtype)
        (extent,) = check_outputs(snapshot, geometry, layer, [unit], keys, np.empty_like(keys))
        (tier,) = self._reader.fill(snapshot, layer, [extent], reading=self._reading)
        return extent, tier
