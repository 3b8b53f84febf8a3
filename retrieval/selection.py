"""Which units a question reads: the newest first, then the best-scored that fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BudgetTooSmallError

_BLOCK_UNITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one layer may read for one question. The recent units are charged to it too."""

    unit_count: int
    token_count: int
    position_count: int
    """Dropped tokens leave gaps: units may span more positions than they have tokens."""
    recent_unit_count: int
    """How many of the newest units come first, whatever their score."""

    def __post_init__(self) -> None:
        if min(self.unit_count, self.token_count, self.position_count) < 1:
            raise ValueError(f"unit, token and position counts must be >= 1, got {self}")
        if not 0 <= self.recent_unit_count <= self.unit_count:
            raise ValueError(f"recent_unit_count must be in [0, unit_count], got {self}")


def select_recent(
    token_counts: NDArray[np.int64], position_spans: NDArray[np.int64], budget: Budget
) -> NDArray[np.int64]:
    """Return the newest units, up to `recent_unit_count`, while they fit; ascending.

    Raises:
        BudgetTooSmallError: recent units are wanted, and the newest alone does not fit.
    """
    wanted = min(budget.recent_unit_count, len(token_counts))
    newest_first = np.arange(len(token_counts) - 1, len(token_counts) - wanted - 1, -1)
    fits = (np.cumsum(token_counts[newest_first]) <= budget.token_count) & (
        np.cumsum(position_spans[newest_first]) <= budget.position_count
    )
    if wanted and not fits[0]:
        raise BudgetTooSmallError(
            token_count=int(token_counts[-1]), position_span=int(position_spans[-1]), budget=budget
        )
    return newest_first[fits][::-1]


def select(
    scores: NDArray[np.floating],
    token_counts: NDArray[np.int64],
    position_spans: NDArray[np.int64],
    budget: Budget,
) -> NDArray[np.int64]:
    """Return the units to read, ascending: the recent ones, then the best-scored that fit.

    A unit that does not fit is passed over for the next best that does, so no unit that is left
    out would have fitted. At equal scores the newer unit comes first.

    Args:
        scores: (n,) one per unit of the snapshot, in time order.
        token_counts: (n,) kept tokens of each unit.
        position_spans: (n,) positions of each unit.
        budget: limits of the whole selection.

    Raises:
        ValueError: the arrays differ in length, or a score is NaN.
        BudgetTooSmallError: recent units are wanted, and the newest alone does not fit.
    """
    unit_count = len(scores)
    if not unit_count == len(token_counts) == len(position_spans):
        raise ValueError(
            f"got {unit_count} scores, {len(token_counts)} token counts, "
            f"{len(position_spans)} spans"
        )
    if np.isnan(scores).any():
        raise ValueError("scores must not be NaN")
    chosen = select_recent(token_counts, position_spans, budget)
    tokens_left = budget.token_count - int(token_counts[chosen].sum())
    positions_left = budget.position_count - int(position_spans[chosen].sum())
    units_left = budget.unit_count - len(chosen)
    candidate_count = unit_count - len(chosen)  # the recent ones are the newest
    best_first = best(scores[:candidate_count], units_left)
    if (
        token_counts[best_first].sum() > tokens_left
        or position_spans[best_first].sum() > positions_left
    ):
        best_first = _fitting(
            best(scores[:candidate_count], candidate_count),
            token_counts,
            position_spans,
            units_left=units_left,
            tokens_left=tokens_left,
            positions_left=positions_left,
        )
    return np.concatenate([np.sort(best_first), chosen])


def best(scores: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Return the indices of the best scores, at most `count`, best first, newer at a tie."""
    if count < 1:
        return np.empty(0, np.int64)
    candidates = _candidates(scores, count)
    order = np.lexsort((-candidates, -scores[candidates]))[:count]
    found: NDArray[np.int64] = candidates[order]
    return found


def _candidates(scores: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` best scores and of a few more, all that tie among them."""
    block_count = len(scores) // _BLOCK_UNITS
    if block_count >= count:
        # Each of the best blocks holds a score as high as the least of their maxima: that many are
        # not below it. Comparing is several times faster than partitioning what is compared.
        blocks = scores[: block_count * _BLOCK_UNITS].reshape(block_count, _BLOCK_UNITS)
        values = blocks.max(axis=1)
    elif count < len(scores):
        values = scores
    else:
        return np.arange(len(scores))
    place = len(values) - count
    return np.flatnonzero(scores >= np.partition(values, place)[place])


def _fitting(
    best_first: NDArray[np.int64],
    token_counts: NDArray[np.int64],
    position_spans: NDArray[np.int64],
    *,
    units_left: int,
    tokens_left: int,
    positions_left: int,
) -> NDArray[np.int64]:
    """Return, in the order given, every unit that fits after those before it."""
    fitting: list[int] = []
    smallest = int(token_counts[best_first].min())
    for unit in best_first.tolist():
        if len(fitting) == units_left or tokens_left < smallest:
            break
        token_count, span = int(token_counts[unit]), int(position_spans[unit])
        if token_count <= tokens_left and span <= positions_left:
            fitting.append(unit)
            tokens_left -= token_count
            positions_left -= span
    return np.array(fitting, np.int64)
