"""Which units a layer reads: by score, the newest, shared by all layers, or named."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.selection import Budget, select, select_recent
from svc.engine.memory import Memory


class Chooser(Protocol):
    """Decides which units a layer reads."""

    def choose(
        self, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the units for a layer, ascending.

        Args:
            scores: (unit_count,), of the layer.
            lost: (unit_count,), which units cannot be read and are none to choose from; None
                where all can.
        """
        ...

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many units a layer's losses are a share of, given its first choice."""
        ...


class BestScored:
    """The newest units, then the best-scored that fit the budget."""

    def __init__(self, memory: Memory, budget: Budget) -> None:
        self._memory = memory
        self._budget = budget

    def choose(
        self, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the layer's own choice; the next best take the places of lost units."""
        counts, spans = self._memory.token_counts, self._memory.position_spans
        if lost is None:
            return select(scores, counts, spans, self._budget)
        left = np.flatnonzero(~lost)
        chosen: NDArray[np.int64] = left[
            select(scores[left], counts[left], spans[left], self._budget)
        ]
        return chosen

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many it chose."""
        return len(wanted)

    def recent(self) -> Recent:
        """Return what chooses only the newest units."""
        return Recent(self._memory, self._budget)


class Recent:
    """Only the part of a choice that does not depend on scores: the newest units."""

    def __init__(self, memory: Memory, budget: Budget) -> None:
        self._memory = memory
        self._budget = budget

    def choose(
        self, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the newest units that are not lost."""
        left = np.arange(len(scores)) if lost is None else np.flatnonzero(~lost)
        counts, spans = self._memory.token_counts[left], self._memory.position_spans[left]
        chosen: NDArray[np.int64] = left[select_recent(counts, spans, self._budget)]
        return chosen

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many the whole choice may have: these are its beginning."""
        return self._budget.unit_count


class SharedScores:
    """One choice for all layers, by scores that were gathered before."""

    def __init__(self, chooser: BestScored, scores: NDArray[np.floating]) -> None:
        self._chooser = chooser
        self._scores = scores

    def choose(
        self, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the shared choice."""
        return self._chooser.choose(self._scores, lost)

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many it chose."""
        return len(wanted)


class FixedUnits:
    """The same units in every layer, whatever the scores; nothing replaces a lost one."""

    def __init__(self, units: NDArray[np.int64]) -> None:
        self._units = units

    def choose(
        self, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the fixed units, without lost ones."""
        return self._units if lost is None else self._units[~lost[self._units]]

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many there are."""
        return len(wanted)
