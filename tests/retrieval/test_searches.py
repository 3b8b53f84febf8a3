from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.fusion import softmax_mean
from retrieval.searches import interleaved, mixed


@st.composite
def searches(draw: st.DrawFn) -> list[np.ndarray]:
    """Scores with ties, of one to four searches over the same units."""
    unit_count = draw(st.integers(1, 12))
    scores = st.lists(st.integers(-3, 3), min_size=unit_count, max_size=unit_count)
    found = draw(st.lists(scores, min_size=1, max_size=4))
    return [np.array(each, np.float32) for each in found]


def by_taking_turns(found: list[np.ndarray]) -> list[int]:
    """Return the units in the order that is meant, said another way: one name after the other."""
    first, *others = (
        iter(sorted(range(len(scores)), key=lambda unit: (-scores[unit], -unit)))
        for scores in found
    )
    order: list[int] = []
    turn = 0
    while len(order) < len(found[0]):
        for search in (first, others[turn % len(others)]) if others else (first,):
            unit = next(search, None)
            if unit is not None and unit not in order:
                order.append(unit)
        turn += 1
    return order


@given(searches())
def test_searches_take_turns_and_the_first_has_every_second(found: list[np.ndarray]) -> None:
    scores = interleaved(found)
    order = sorted(range(len(scores)), key=lambda unit: (-scores[unit], -unit))
    assert order == by_taking_turns(found)


@given(searches(), st.floats(0.01, 10))
def test_the_mixed_share_is_half_the_firsts_and_the_others_have_the_rest_alike(
    found: list[np.ndarray], scale: float
) -> None:
    shares = [softmax_mean([scores], scale) for scores in found]
    expected = 0.5 * shares[0] + 0.5 * np.mean(shares[1:] or [shares[0]], axis=0)
    np.testing.assert_allclose(softmax_mean([mixed(found, scale)], scale), expected, rtol=1e-3)


def test_one_search_is_the_very_same_array() -> None:
    scores = np.array([1.0, 2.0], np.float32)
    assert interleaved([scores]) is scores
    assert mixed([scores], 0.5) is scores


@pytest.mark.parametrize("search_count", [2, 3])
def test_a_unit_that_is_no_candidate_has_no_share_and_comes_last(search_count: int) -> None:
    scores = np.array([-math.inf, 0.0, 1.0], np.float32)
    found = [scores, scores[[0, 2, 1]], scores][:search_count]
    share = mixed(found, 1.0)
    assert share[0] == -math.inf
    assert np.isfinite(share[1:]).all()
    assert np.argmin(interleaved(found)) == 0


def test_large_scores_do_not_overflow() -> None:
    found = [np.array([1e30, -1e30], np.float32), np.array([-1e30, 1e30], np.float32)]
    np.testing.assert_allclose(softmax_mean([mixed(found, 1.0)], 1.0), [0.5, 0.5])
