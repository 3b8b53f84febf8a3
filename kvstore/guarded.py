"""A reader as one task uses it: its reads share a pool, and end with the task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from kvstore.geometry import Tier
from kvstore.reader import SessionReader
from kvstore.readpool import Reading, ReadPool
from kvstore.snapshot import Snapshot


class GuardedReader:
    """A session's reader, bound to a pool and to what says how long its reads are wanted."""

    def __init__(self, reader: SessionReader, pool: ReadPool | None, reading: Reading) -> None:
        """Own nothing; with no pool, the calling thread reads."""
        self._reader = reader
        self._pool = pool
        self._reading = reading

    def read(
        self,
        snapshot: Snapshot,
        layer: int,
        unit_indices: Iterable[int],
        keys_out: np.ndarray[Any, Any],
        values_out: np.ndarray[Any, Any],
    ) -> list[Tier]:
        """Read as `SessionReader.read` does.

        Raises:
            ReadGivenUpError: the task is given up, or its deadline passed.
        """
        return self._reader.read(
            snapshot,
            layer,
            unit_indices,
            keys_out,
            values_out,
            pool=self._pool,
            reading=self._reading,
        )

    def cells(self, snapshot: Snapshot, unit_index: int) -> np.ndarray[Any, Any]:
        """Row and column of each kept token of a unit, as `SessionReader.cells`."""
        return self._reader.cells(snapshot, unit_index)
