"""Scores of several layers made one, and made into evidence: the spans an answer rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_SPAN_COUNT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of consecutive units, [first_unit, stop_unit), that an answer rests on."""

    first_unit: int
    stop_unit: int
    score: float
    """Sum over its units of their mean softmax score: the share of all relevance, in [0, 1]."""
    newest: bool
    """It holds the newest unit of the snapshot."""


def softmax_mean(layer_scores: Sequence[NDArray[np.floating]], scale: float) -> NDArray[np.float64]:
    """Return each unit's softmax score, averaged over the layers; sums to 1.

    Args:
        layer_scores: per layer (n,), one inner product per unit of the snapshot, n >= 1.
        scale: multiplies them before the softmax. 1 / sqrt(head_count * head_dim) treats all
            heads together as one vector of scaled dot-product attention.

    Returns:
        (n,) float64. Every unit of the snapshot is a candidate, so scores of different answers
        over one snapshot compare, whatever their budgets.
    """
    mean = np.zeros(len(layer_scores[0]))
    weights = np.empty_like(mean)  # one layer after the other: all at once would leave the cache
    for scores in layer_scores:
        np.multiply(scores, scale, out=weights, dtype=np.float64)
        weights -= weights.max()
        np.exp(weights, out=weights)
        weights /= weights.sum()
        mean += weights
    mean /= len(layer_scores)
    return mean


def spans(
    scores: NDArray[np.float64],
    loaded: NDArray[np.bool_],
    follows: NDArray[np.bool_],
    *,
    max_count: int = MAX_SPAN_COUNT,
) -> list[Span]:
    """Return the spans of an answer's evidence, best first.

    Only units that some layer loaded are evidence: the answer saw nothing of the others. Loaded
    neighbours make one span, unless a hole lies between them. The newest unit, where loaded,
    keeps a place: an answer about now rests on it, and a question about now ("what is this?")
    resembles no unit's keys in particular. It takes the last place if its score gives it none.

    Args:
        scores: (n,) of `softmax_mean`.
        loaded: (n,) whether the unit was loaded in at least one layer.
        follows: (n,) whether the unit directly continues the one before it; [0] is not read.
        max_count: how many spans at most, >= 1.

    Returns:
        At most `max_count` spans by descending score; at equal scores the later one first.
    """
    if not len(scores) == len(loaded) == len(follows) or max_count < 1:
        raise ValueError(
            f"got {len(scores)} scores, {len(loaded)} and {len(follows)} flags, {max_count=}"
        )
    units = np.flatnonzero(loaded)
    if not len(units):
        return []
    starts_new = np.r_[True, (np.diff(units) != 1) | ~follows[units[1:]]]
    merged = [
        Span(
            first_unit=int(run[0]),
            stop_unit=int(run[-1]) + 1,
            score=float(min(1.0, scores[run].sum())),
            newest=int(run[-1]) == len(scores) - 1,
        )
        for run in np.split(units, np.flatnonzero(starts_new)[1:])
    ]
    ranked = sorted(merged, key=lambda span: (-span.score, -span.first_unit))
    best, rest = ranked[:max_count], ranked[max_count:]
    if any(span.newest for span in rest):
        best[-1] = next(span for span in rest if span.newest)
    return best
