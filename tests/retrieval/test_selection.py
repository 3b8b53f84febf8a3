from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import BudgetTooSmallError
from retrieval.selection import Budget, best, select, select_recent

UNITS = st.lists(
    st.tuples(
        st.integers(-3, 3).map(float),  # few values: ties are common
        st.integers(1, 6),
        st.integers(0, 5),
    ),
    max_size=24,
)
BUDGETS = st.builds(
    lambda units, tokens, positions, recent: Budget(
        unit_count=units,
        token_count=tokens,
        position_count=positions,
        recent_unit_count=min(recent, units),
    ),
    st.integers(1, 12),
    st.integers(6, 40),
    st.integers(11, 60),
    st.integers(0, 5),
)


def arrays(
    units: list[tuple[float, int, int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = np.array([unit[0] for unit in units], np.float32)
    token_counts = np.array([unit[1] for unit in units], np.int64)
    spans = token_counts + np.array([unit[2] for unit in units], np.int64)  # gaps of dropped ones
    return scores, token_counts, spans


@given(UNITS, BUDGETS)
def test_a_selection_obeys_every_limit(units: list[tuple[float, int, int]], budget: Budget) -> None:
    scores, token_counts, spans = arrays(units)
    chosen = select(scores, token_counts, spans, budget)
    assert np.all(np.diff(chosen) > 0)  # time order, none twice
    assert len(chosen) <= budget.unit_count
    assert token_counts[chosen].sum() <= budget.token_count
    assert spans[chosen].sum() <= budget.position_count


@given(UNITS, BUDGETS)
def test_the_newest_units_come_first_and_are_charged(
    units: list[tuple[float, int, int]], budget: Budget
) -> None:
    scores, token_counts, spans = arrays(units)
    chosen = select(scores, token_counts, spans, budget).tolist()
    recent = select_recent(token_counts, spans, budget).tolist()
    assert chosen[len(chosen) - len(recent) :] == recent
    assert recent == list(range(len(units) - len(recent), len(units)))
    wanted = min(budget.recent_unit_count, len(units))
    if len(recent) < wanted:  # one more would have passed a limit
        more = slice(len(units) - len(recent) - 1, None)
        assert (
            token_counts[more].sum() > budget.token_count
            or spans[more].sum() > budget.position_count
        )


@given(UNITS, BUDGETS)
def test_no_unit_left_out_would_have_fitted_in_place_of_worse_ones(
    units: list[tuple[float, int, int]], budget: Budget
) -> None:
    scores, token_counts, spans = arrays(units)
    chosen = select(scores, token_counts, spans, budget)
    recent = set(select_recent(token_counts, spans, budget).tolist())
    for unit in set(range(len(units))) - set(chosen.tolist()):
        rank = (scores[unit], unit)  # ties go to the newer
        better = [u for u in chosen.tolist() if u in recent or (scores[u], u) > rank]
        assert (
            len(better) == budget.unit_count
            or token_counts[better].sum() + token_counts[unit] > budget.token_count
            or spans[better].sum() + spans[unit] > budget.position_count
        )


def test_without_recent_units_only_scores_count() -> None:
    budget = Budget(unit_count=2, token_count=9, position_count=9, recent_unit_count=0)
    ones = np.ones(4, np.int64)
    assert select(np.array([3.0, 1.0, 2.0, 0.0]), ones, ones, budget).tolist() == [0, 2]


def test_a_newest_unit_beyond_the_budget_is_an_error_and_not_left_out() -> None:
    budget = Budget(unit_count=2, token_count=3, position_count=9, recent_unit_count=1)
    counts = np.array([1, 4])
    with pytest.raises(BudgetTooSmallError) as caught:
        select(np.zeros(2), counts, counts, budget)
    assert caught.value.token_count == 4


def test_a_nan_score_is_an_error() -> None:
    budget = Budget(unit_count=1, token_count=9, position_count=9, recent_unit_count=0)
    ones = np.ones(2, np.int64)
    with pytest.raises(ValueError, match="NaN"):
        select(np.array([0.0, np.nan]), ones, ones, budget)


@pytest.mark.parametrize(
    "changes", [{"unit_count": 0}, {"token_count": 0}, {"recent_unit_count": 3}]
)
def test_an_impossible_budget_is_refused(changes: dict[str, int]) -> None:
    fields = {"unit_count": 2, "token_count": 9, "position_count": 9, "recent_unit_count": 1}
    with pytest.raises(ValueError, match="must be"):
        Budget(**(fields | changes))


@given(
    st.lists(st.integers(-3, 3) | st.just(-math.inf), min_size=1, max_size=300),
    st.integers(1, 12),
)
def test_the_best_of_many_are_those_of_a_whole_sort(values: list[float], count: int) -> None:
    scores = np.array(values, np.float32)
    wanted = sorted(range(len(values)), key=lambda unit: (-values[unit], -unit))[:count]
    assert best(scores, count).tolist() == wanted
