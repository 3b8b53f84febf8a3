"""The newest unit, answerable whole: what reduction dropped of it is taken from earlier units.

A token was dropped because it resembles one that was kept earlier at its place. So each place that
the newest unit lacks shows what was last kept there, at the position it has in the newest unit:
keys are stored before RoPE, so a token can stand anywhere. Nothing but stored units is used: an
answer as of a time later equals the live answer then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvstore.errors import SliceCorruptError, UnitsThinnedError
from kvstore.geometry import Tier
from svc.engine.layout import Cells, UnitLayout, pictured, places
from svc.engine.memory import Memory

MAX_LOOKBACK_UNITS = 64
"""How far back a place is looked for: `last_kept` and `budget` keep a unit whole more often. `dtd`
never does again, as published: what has stood still for longer lacks in its newest unit."""


@dataclass(frozen=True, slots=True, eq=False)
class _Composite:
    """Which tokens make the newest unit whole, in reading order, its text behind."""

    units: NDArray[np.int64]
    """(n,): the unit that each token is of."""
    offsets: NDArray[np.int64]
    """(n,): which of that unit's tokens it is."""
    cells: Cells
    """(n, 2), none twice."""

    @property
    def sources(self) -> NDArray[np.int64]:
        """The units that tokens are of, ascending, the newest included."""
        return np.unique(self.units)


class WholeNewest:
    """A memory whose newest unit has a token at every place that was kept lately.

    See `svc.engine.memory.Memory`, which it is, over another.
    """

    def __init__(self, memory: Memory) -> None:
        """Put it over `memory`."""
        self._memory = memory
        self._unreadable: set[int] = set()
        self._newest = memory.unit_count - 1
        self._compose()

    @property
    def unit_count(self) -> int:
        """Units in the snapshot."""
        return self._memory.unit_count

    @property
    def first_unit(self) -> int:
        """Units before it were dropped from the store, and are none to choose from."""
        return self._memory.first_unit

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """(unit_count,): tokens of each unit, those lent to the newest counted with it."""
        return self._token_counts

    @property
    def position_spans(self) -> NDArray[np.int64]:
        """(unit_count,): positions each unit takes, dropped tokens included."""
        return self._memory.position_spans

    @property
    def repeats(self) -> NDArray[np.bool_]:
        """(unit_count,): units that kept one token of several when they were stored."""
        return self._memory.repeats

    @property
    def tiers(self) -> Mapping[int, Tier]:
        """Slowest tier each unit was loaded from so far."""
        return self._memory.tiers

    @property
    def coarsened(self) -> Set[int]:
        """Units loaded so far that had lost tokens, to make room, by the time of some load."""
        return self._memory.coarsened

    def meet(self, thinned: UnitsThinnedError) -> None:
        """Go on with the units as they are now."""
        self._memory.meet(thinned)
        self._compose()

    @property
    def layout(self) -> UnitLayout:
        """Where the tokens of the session's units stand."""
        return self._memory.layout

    def cells(self, units: NDArray[np.int64]) -> Cells:
        """Return each token's cell, unit after unit."""
        made = self._composite
        if made is None or self._newest not in units:
            return self._memory.cells(units)
        parts = [
            made.cells if unit == self._newest else self._memory.cells(np.array([unit]))
            for unit in units.tolist()
        ]
        return np.concatenate(parts)

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the inner product of `query` with each unit's mean key before RoPE."""
        return self._memory.scores(layer, query)

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return keys before RoPE and values of the units, in the order given.

        A unit that only lends tokens and cannot be read is told as lost, once, and lends no more.
        """
        made = self._composite
        if made is None or self._newest not in units:
            return self._memory.load(layer, units)
        wanted = np.union1d(units, made.sources)
        try:
            keys, values = self._memory.load(layer, wanted)
        except SliceCorruptError as error:
            self._unreadable.update(each.unit_index for each in error.damaged)
            self._compose()
            raise
        picks = self._picks(units, wanted, made)
        return keys[picks], values[picks]

    def _picks(
        self, units: NDArray[np.int64], wanted: NDArray[np.int64], made: _Composite
    ) -> NDArray[np.int64]:
        """Return where the tokens of `units` lie among those loaded, of `wanted`."""
        counts = self._memory.token_counts[wanted]
        starts = np.cumsum(counts) - counts
        parts = []
        for unit in units.tolist():
            if unit == self._newest:
                parts.append(starts[np.searchsorted(wanted, made.units)] + made.offsets)
            else:
                place = int(np.searchsorted(wanted, unit))
                parts.append(np.arange(starts[place], starts[place] + counts[place]))
        return np.concatenate(parts)

    def _compose(self) -> None:
        while True:
            try:
                self._composite = self._find()
                break
            except UnitsThinnedError as error:
                self._memory.meet(error)
        self._token_counts = self._memory.token_counts
        if self._composite is not None:
            self._token_counts = self._token_counts.copy()
            self._token_counts[self._newest] = len(self._composite.cells)

    def _find(self) -> _Composite | None:
        """Return the newest unit made whole; None where nothing lacks, or nothing can be lent."""
        newest, wanted = self._newest, math.prod(self.layout.grid)
        if newest < self._memory.first_unit or newest in self._unreadable:
            return None
        if self._memory.token_counts[newest] >= self.layout.tokens_per_unit:
            return None  # without a look at its cells
        oldest = max(self._memory.first_unit, newest - MAX_LOOKBACK_UNITS)
        units, offsets, cells = [], [], []
        found: NDArray[np.int64] = np.empty(0, np.int64)
        for unit in range(newest, oldest - 1, -1):
            own = self._memory.cells(np.array([unit]))
            shown = pictured(own)
            new = np.flatnonzero(shown & ~np.isin(places(own), found))
            # What cannot be read shows nothing: what was there before it is not what is there now.
            found = np.concatenate([found, places(own[new])])
            if unit not in self._unreadable:
                lent = new if unit != newest else np.arange(len(own))
                units.append(np.full(len(lent), unit))
                offsets.append(lent)
                cells.append(own[lent])
            if len(found) == wanted:
                break
        if len(units) == 1:
            return None
        together = np.concatenate(cells)
        order = np.argsort(places(together), kind="stable")
        return _Composite(
            np.concatenate(units)[order], np.concatenate(offsets)[order], together[order]
        )
