"""In which order units are candidates, beyond their plain score. Each rule can be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.coverage import evenly
from retrieval.marginal import by_marginal_relevance
from retrieval.neighbours import with_neighbours
from retrieval.runs import capped, runs
from retrieval.selection import best
from retrieval.trend import detrended

_POOL_FACTOR = 8
"""Candidates that rules look at, per unit that may be read."""

Rows = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""(n,) units -> (n, dim), their mean keys in the layer that chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Rules for one question; the default is the plain score."""

    detrended: bool = False
    per_run_count: int | None = None
    """Units at most of one run of neighbours that resemble each other."""
    novelty: float = 0.0
    """What likeness to those taken already costs, in standard deviations of the score."""
    neighbour_reach: int = 0
    """A unit brings those up to so many before and after it."""
    least_ratio: float = 0.0
    """Units whose softmax score is below this part of the best one's are not read."""
    even: bool = False
    """In place of the score: spread evenly over time."""

    @property
    def plain(self) -> bool:
        """Whether only the score counts."""
        return self == Ranking()

    def order(
        self,
        scores: NDArray[np.floating],
        log_scale: float,
        count: int,
        rows: Rows,
    ) -> NDArray[np.int64]:
        """Return candidates, best first.

        Args:
            scores: (n,) of the units to choose from, in time order; units are indices into it.
            log_scale: what scores are multiplied by to be logarithms of softmax scores.
            count: how many units may be read.
            rows: of the units.
        """
        if self.even:
            return evenly(len(scores), count)
        if self.detrended:
            scores = detrended(scores)
        order = best(scores, count * _POOL_FACTOR)
        if self.least_ratio and len(order):
            gaps = (scores[order[0]] - scores[order]) * log_scale
            order = order[gaps <= -np.log(self.least_ratio)]
        if self.per_run_count is not None and len(order):
            in_time = np.sort(order)
            run_of = np.zeros(len(scores), np.int64)
            run_of[in_time] = runs(in_time, rows(in_time))
            order = capped(order, run_of, self.per_run_count)
        if self.novelty:
            order = by_marginal_relevance(
                order, scores[order], rows(order), weight=self.novelty, count=count
            )
        if self.neighbour_reach:
            order = with_neighbours(order, len(scores), self.neighbour_reach)
        return order
