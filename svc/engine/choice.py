"""Which units a layer reads: by score, the newest, shared by all layers, or named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.ranking import Ranking
from retrieval.selection import Budget, select, select_ordered, select_recent
from svc.engine.memory import Memory


class Chooser(Protocol):
    """Decides which units a layer reads."""

    def choose(
        self, layer: int, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the units for a layer, ascending.

        Args:
            layer: from 0.
            scores: (unit_count,), of the layer.
            lost: (unit_count,), which units cannot be read and are none to choose from; None
                where all can.
        """
        ...

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many units a layer's losses are a share of, given its first choice."""
        ...


class BestScored:
    """The newest units, then the best-ranked that fit the budget."""

    def __init__(
        self, memory: Memory, budget: Budget, ranking: Ranking, *, score_scale: float
    ) -> None:
        """Choose from `memory`; `score_scale` makes a layer's scores logs of softmax scores."""
        self._memory = memory
        self._budget = budget
        self._ranking = ranking
        self._score_scale = score_scale

    def choose(
        self, layer: int, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the layer's own choice; the next best take the places of lost units."""
        return self.by(layer, scores, self._score_scale, lost)

    def by(
        self,
        layer: int,
        scores: NDArray[np.floating],
        log_scale: float,
        lost: NDArray[np.bool_] | None,
    ) -> NDArray[np.int64]:
        """Return the choice by scores that, times `log_scale`, are logs of softmax scores."""
        counts, spans = self._memory.token_counts, self._memory.position_spans
        if lost is None:
            left = np.arange(len(scores))
        else:
            left = np.flatnonzero(~lost)
            scores, counts, spans = scores[left], counts[left], spans[left]
        if self._ranking.plain:
            chosen: NDArray[np.int64] = left[select(scores, counts, spans, self._budget)]
            return chosen
        past_count = len(left) - len(select_recent(counts, spans, self._budget))
        order = self._ranking.order(
            scores[:past_count],
            log_scale,
            self._budget.unit_count,
            lambda units: self._memory.rows(layer, left[units]),
        )
        ranked: NDArray[np.int64] = left[select_ordered(order, counts, spans, self._budget)]
        return ranked

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
        self, layer: int, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the newest units that are not lost."""
        left = np.arange(len(scores)) if lost is None else np.flatnonzero(~lost)
        counts, spans = self._memory.token_counts[left], self._memory.position_spans[left]
        chosen: NDArray[np.int64] = left[select_recent(counts, spans, self._budget)]
        return chosen

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many the whole choice may have: these are its beginning."""
        return self._budget.unit_count


class GatheredScores:
    """Every layer's own choice, by scores that an earlier pass gathered."""

    def __init__(self, chooser: BestScored, scores: Sequence[NDArray[np.floating]]) -> None:
        self._chooser = chooser
        self._scores = scores

    def choose(
        self, layer: int, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the layer's own choice."""
        return self._chooser.choose(layer, self._scores[layer], lost)

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many it chose."""
        return len(wanted)


class SharedScores:
    """One choice for all layers, by scores that were gathered before.

    Where likeness counts, it is that of the first layer's keys, which know only their own unit.
    """

    def __init__(self, chooser: BestScored, scores: NDArray[np.floating]) -> None:
        """Take the layers' softmax scores, averaged."""
        self._chooser = chooser
        self._logs = np.log(np.maximum(scores, np.finfo(np.float64).tiny))

    def choose(
        self, layer: int, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the shared choice."""
        return self._chooser.by(0, self._logs, 1.0, lost)

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many it chose."""
        return len(wanted)


class FixedUnits:
    """The same units in every layer, whatever the scores; nothing replaces a lost one."""

    def __init__(self, units: NDArray[np.int64]) -> None:
        self._units = units

    def choose(
        self, layer: int, scores: NDArray[np.floating], lost: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the fixed units, without lost ones."""
        return self._units if lost is None else self._units[~lost[self._units]]

    def judged_by(self, wanted: NDArray[np.int64]) -> int:
        """Return how many there are."""
        return len(wanted)
