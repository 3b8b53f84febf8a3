"""Several searches made one: a question that continues a conversation, and the turns before it.

"What colour was it?" names nothing; the turn before it does. Averaging the texts into one query
drowns the one in the other. So each text searches alone, and they take turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def interleaved(searches: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    """Return scores that rank units as the searches take turns.

    The first search names every second unit, the others the rest, one after the other: with three,
    a b a c a b a c. A unit that several name has the best of its places.

    Args:
        searches: one or more, of (n,) scores each; one alone is returned as it is.

    Returns:
        (n,), the higher the better; of several searches, minus the place.
    """
    first, *others = searches
    if not others:
        return first
    places = 2 * _ranks(first)
    for number, scores in enumerate(others):
        np.minimum(places, 2 * (len(others) * _ranks(scores) + number) + 1, out=places)
    return -places.astype(np.float64)


def mixed(searches: Sequence[NDArray[np.floating]], scale: float) -> NDArray[np.floating]:
    """Return scores whose softmax is the mean of the searches', the first having half the weight.

    Args:
        searches: one or more, of (n,) scores each, n >= 1, not all -inf; one alone is returned as
            it is.
        scale: what scores are multiplied by before a softmax, those that are returned too.
    """
    first, *others = searches
    if not others:
        return first
    share = 0.5 * _softmax(first, scale)
    for scores in others:
        share += 0.5 / len(others) * _softmax(scores, scale)
    with np.errstate(divide="ignore"):  # a unit that is no candidate has no share
        found: NDArray[np.float32] = (np.log(share) / scale).astype(np.float32)
    return found


def _ranks(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return each unit's place in one search, from 0; the newer first at a tie."""
    newest_first = np.argsort(-scores[::-1], kind="stable")
    ranks = np.empty(len(scores), np.int64)
    ranks[len(scores) - 1 - newest_first] = np.arange(len(scores))
    return ranks


def _softmax(scores: NDArray[np.floating], scale: float) -> NDArray[np.float64]:
    weights = np.multiply(scores, scale, dtype=np.float64)
    np.exp(weights - weights.max(), out=weights)
    share: NDArray[np.float64] = weights / weights.sum()
    return share
