"""Which tokens go when units are thinned: those most like what was kept before them.

A token is compared with the one that was last *kept* at its (row, column) cell in an earlier unit,
so that a slow drift is not lost step by step; where that does not take enough, with the one last
kept before it in its own unit. Likeness is the cosine of their keys before RoPE as stored, averaged
over up to four layers. A token that went has, in the unit where it lay or before, one that stayed
and is at least as like to it as the threshold that was found. Every unit keeps a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.unit import FIRST_TEXT_ROW

Array = np.ndarray[Any, Any]

LOST_FRACTIONS = (0.5, 0.75, 0.875, 1.0)
"""Share of the tokens that may go which one thinning takes: the first that frees anything."""
_LAYERS_COMPARED = 4
_THRESHOLD_COUNT = 1 << 10


def compared_layers(layer_count: int) -> list[int]:
    """The layers whose keys are compared: up to four, from the first to the last."""
    wanted = min(layer_count, _LAYERS_COMPARED)
    return np.linspace(0, layer_count - 1, wanted).round().astype(int).tolist()  # type: ignore[no-any-return]


def directions(keys: Array) -> Array:
    """Keys such that the inner product of two tokens is their mean cosine over the layers.

    Args:
        keys: (layers, tokens, channels) float.

    Returns:
        (tokens, layers * channels) float32. Zeros, which are like nothing, where keys are not
        finite.
    """
    layer_count, token_count, _ = keys.shape
    wide = keys.astype(np.float64)
    wide[~np.isfinite(wide).all(axis=2)] = 0
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(wide, axis=2, keepdims=True) * np.sqrt(layer_count)
    sound = (lengths > 0) & np.isfinite(lengths)
    unit = np.divide(wide, lengths, out=np.zeros_like(wide), where=sound).astype(np.float32)
    rows: Array = unit.transpose(1, 0, 2).reshape(token_count, -1)
    return rows


def lost_tokens(keys: Array, units: Array, cells: Array, may_lose: Array, fraction: float) -> Array:
    """Choose what goes of a run of units.

    Args:
        keys: (tokens, channels) float32, of `directions`, in order of time.
        units: (tokens,) int64, ascending from 0: whose each token is.
        cells: (tokens, 2) row and column.
        may_lose: (units,) bool.
        fraction: of the tokens of those units, that is to go.

    Returns:
        (tokens,) bool. None of a unit that may not lose any, and no text; of the other tokens the
        share that is asked for, but one of each unit stays.
    """
    of_picture = cells[:, 0] < FIRST_TEXT_ROW
    if not of_picture.all():
        lost = np.zeros(len(cells), np.bool_)
        own = keys[of_picture], units[of_picture], cells[of_picture]
        lost[of_picture] = lost_tokens(*own, may_lose, fraction)
        return lost
    free = may_lose[units]
    wanted = int(free.sum() * fraction)
    places = np.unique(cells.astype(np.int64) @ [1 << 16, 1], return_inverse=True)[1].reshape(-1)
    over_time = _Walk(keys, units, places, free)
    lost = over_time.most_alike(wanted, units)
    missing = wanted - int(lost.sum())
    if missing > 0:
        left = np.flatnonzero(~lost)
        starts = np.searchsorted(units[left], units[left])
        within = _Walk(keys[left], np.arange(len(left)) - starts, units[left], free[left])
        lost[left[within.most_alike(missing, units[left])]] = True
    return lost


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """Comparing each token with the one last kept in its slot at an earlier step."""

    keys: Array
    steps: Array
    """(tokens,) from 0; of one step no token is compared with another."""
    slots: Array
    """(tokens,) from 0."""
    free: Array
    """(tokens,) bool: which may go."""

    def most_alike(self, wanted: int, units: Array) -> Array:
        """(tokens,) bool: the `wanted` that go, or all that can, a token of each unit staying."""
        order = np.argsort(self.steps, kind="stable")
        bounds = np.flatnonzero(np.diff(self.steps[order])) + 1
        by_step = np.split(order, bounds)
        likeness, lost = self._lose(by_step, -np.inf)
        if int(lost.sum()) > wanted:
            levels = np.linspace(0, 1, _THRESHOLD_COUNT)
            thresholds = np.unique(np.quantile(likeness[lost], levels))
            # The highest that takes enough. It may take more: then the least like come back.
            low, high = 0, len(thresholds)
            while high - low > 1:
                middle = (low + high) // 2
                found, gone = self._lose(by_step, thresholds[middle])
                if int(gone.sum()) >= wanted:
                    low, likeness, lost = middle, found, gone
                else:
                    high = middle
        for token in _coming_back(lost, likeness, units, wanted):
            lost[token] = False
        return lost

    def _lose(self, by_step: list[Array], threshold: float) -> tuple[Array, Array]:
        """(tokens,) likeness and whether it is at least `threshold`, which a token goes for."""
        likeness = np.full(len(self.slots), -np.inf)
        lost = np.zeros(len(self.slots), np.bool_)
        last = np.full(int(self.slots.max(initial=-1)) + 1, -1)
        for tokens in by_step:
            before = last[self.slots[tokens]]
            compared = self.free[tokens] & (before >= 0)
            ours, theirs = tokens[compared], before[compared]
            likeness[ours] = np.einsum("tc,tc->t", self.keys[ours], self.keys[theirs])
            lost[ours] = likeness[ours] >= threshold
            kept = tokens[~lost[tokens]]
            last[self.slots[kept]] = kept
        return likeness, lost


def _coming_back(lost: Array, likeness: Array, units: Array, wanted: int) -> Iterator[Array]:
    """Tokens that stay after all: one of each unit that would have none, then the surplus.

    The least like come first, of equal ones the newest.
    """
    gone = np.flatnonzero(lost)
    gone = gone[np.lexsort((-gone, likeness[gone]))]
    empty = np.bincount(units[~lost], minlength=int(units.max(initial=-1)) + 1) == 0
    of_empty = np.flatnonzero(empty[units[gone]])
    firsts = of_empty[np.unique(units[gone[of_empty]], return_index=True)[1]]
    yield gone[firsts]
    rest = np.delete(gone, firsts)
    yield rest[: max(len(rest) - wanted, 0)]
