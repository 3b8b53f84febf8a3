"""Maximal marginal relevance: next comes what is relevant and unlike what was taken already."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def by_marginal_relevance(
    order: NDArray[np.int64],
    scores: NDArray[np.floating],
    rows: NDArray[np.float32],
    *,
    weight: float,
    count: int,
) -> NDArray[np.int64]:
    """Return the first `count` candidates by score less `weight` times likeness to those before.

    Args:
        order: (n,) candidates, best first; at a tie the earlier in it comes first.
        scores: (n,) of the candidates, in the same order; counted in their standard deviations.
        rows: (n, dim), their mean keys in one layer; likeness is the cosine of the centred rows,
            to the most alike, at least 0.
        weight: >= 0.
        count: how many are wanted.

    Source: Carbonell and Goldstein, SIGIR 1998; the units of measure are ours.
    """
    if len(order) < 2:
        return order[:count]
    centred = rows - rows.mean(axis=0)
    directions = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    values = scores.astype(np.float64)
    values = values / max(float(values.std()), 1e-12)
    likeness = np.zeros(len(order))
    free = np.ones(len(order), np.bool_)
    taken: list[int] = []
    for _ in range(min(count, len(order))):
        place = int(np.argmax(np.where(free, values - weight * likeness, -np.inf)))
        taken.append(place)
        free[place] = False
        likeness = np.maximum(likeness, directions @ directions[place])
    return order[np.array(taken, np.int64)]
