"""A reader as one task uses it: its reads share a pool, and end with the task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from kvstore.encoding import Layout
from kvstore.extents import Outputs, split
from kvstore.geometry import Tier
from kvstore.readahead import ReadAhead
from kvstore.reader import SessionReader
from kvstore.readpool import Reading, ReadPool
from kvstore.readtrace import QuestionTrace
from kvstore.snapshot import Snapshot


class GuardedReader:
    """A session's reader, bound to a pool and to what says how long its reads are wanted."""

    def __init__(
        self,
        reader: SessionReader,
        pool: ReadPool | None,
        reading: Reading,
        trace: QuestionTrace | None = None,
    ) -> None:
        """Own nothing; with no pool, the calling thread reads.

        Args:
            reader: of the session.
            pool: says too whether the next layer's units are read ahead.
            reading: until when reads are wanted.
            trace: is told what was read, and from where. None: nobody is.
        """
        self._reader = reader
        self._pool = pool
        self._reading = reading
        self._trace = trace
        self.ahead: ReadAhead | None = None
        """What reads ahead, where something does."""
        if pool is not None and pool.reads_ahead:
            self.ahead = ReadAhead(reader, pool, reading)

    def read(
        self,
        snapshot: Snapshot,
        layer: int,
        unit_indices: Iterable[int],
        keys_out: np.ndarray[Any, Any],
        values_out: np.ndarray[Any, Any],
    ) -> list[Tier]:
        """Read as `SessionReader.read` does, and go on with the same units of the next layer.

        Raises:
            ReadGivenUpError: the task is given up, or its deadline passed.
        """
        return self._read(snapshot, layer, unit_indices, (keys_out, values_out))

    def read_stored(
        self,
        snapshot: Snapshot,
        layer: int,
        unit_indices: Iterable[int],
        out: np.ndarray[Any, Any],
    ) -> list[Tier]:
        """Read as `SessionReader.read_stored` does, and go on with the next layer as `read` does.

        Raises:
            ReadGivenUpError: the task is given up, or its deadline passed.
        """
        return self._read(snapshot, layer, unit_indices, (out,))

    @property
    def layout(self) -> Layout | None:
        """Shape and encoding of what is stored; None until a writer was there."""
        return self._reader.layout

    def _read(
        self, snapshot: Snapshot, layer: int, unit_indices: Iterable[int], outputs: Outputs
    ) -> list[Tier]:
        units = [int(unit) for unit in unit_indices]
        tiers = self._read_tiers(snapshot, layer, units, outputs)
        if self._trace is not None:
            self._trace.note(layer, units, tiers)
        return tiers

    def _read_tiers(
        self, snapshot: Snapshot, layer: int, units: list[int], outputs: Outputs
    ) -> list[Tier]:
        filled = self._reader.steps.recall(
            snapshot, layer, units, outputs, pool=self._pool, reading=self._reading
        )
        if all(filled):
            return [Tier.RAM] * len(units)
        extents = split(snapshot, self._reader.layout, layer, units, outputs)
        if self.ahead is None and not any(filled):  # as without a RAM tier
            return self._reader.steps.fill(
                snapshot, layer, extents, pool=self._pool, reading=self._reading
            )
        missing = [extent for extent in extents if not filled[extent.place]]
        tiers = self.ahead.take(layer, missing) if self.ahead else {}
        rest = [extent for extent in missing if extent.place not in tiers]
        found = self._reader.steps.fill(
            snapshot, layer, rest, pool=self._pool, reading=self._reading
        )
        tiers.update(zip((extent.place for extent in rest), found, strict=True))
        if self.ahead:
            self.ahead.begin(
                snapshot,
                layer + 1,
                [extent.unit_index for extent in missing],
                as_stored=len(outputs) == 1,
            )
        return [tiers.get(place, Tier.RAM) for place in range(len(units))]

    def end(self) -> None:
        """Return when none of its reads is running."""
        if self.ahead:
            self.ahead.end()

    def cells(self, snapshot: Snapshot, unit_index: int) -> np.ndarray[Any, Any]:
        """Row and column of each kept token of a unit, as `SessionReader.cells`."""
        return self._reader.cells(snapshot, unit_index)
