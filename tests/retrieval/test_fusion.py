from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.fusion import softmax_mean, spans

FLAGS = st.lists(
    st.tuples(st.floats(0.01, 1.0), st.booleans(), st.booleans()), min_size=1, max_size=30
)


def arrays(units: list[tuple[float, bool, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = np.array([unit[0] for unit in units])
    return (
        scores / scores.sum(),
        np.array([unit[1] for unit in units]),
        np.array([unit[2] for unit in units]),
    )


def test_each_layer_has_the_same_say() -> None:
    sharp = np.array([100.0, 0.0, 0.0], np.float32)
    flat = np.zeros(3, np.float32)
    np.testing.assert_allclose(softmax_mean([sharp, flat], 1.0), [2 / 3, 1 / 6, 1 / 6])


def test_large_scores_do_not_overflow() -> None:
    scores = softmax_mean([np.array([1e30, -1e30], np.float32)], 1.0)
    np.testing.assert_array_equal(scores, [1.0, 0.0])


@given(FLAGS, st.integers(1, 6))
def test_spans_hold_exactly_loaded_units_and_are_ranked(
    units: list[tuple[float, bool, bool]], max_count: int
) -> None:
    scores, loaded, follows = arrays(units)
    found = spans(scores, loaded, follows, max_count=max_count)
    assert len(found) <= max_count
    assert bool(found) == bool(loaded.any())
    covered = [u for span in found for u in range(span.first_unit, span.stop_unit)]
    assert len(covered) == len(set(covered))
    assert loaded[covered].all()
    assert [span.score for span in found] == sorted((s.score for s in found), reverse=True)
    for span in found:
        assert span.score == pytest.approx(scores[span.first_unit : span.stop_unit].sum())
        assert follows[span.first_unit + 1 : span.stop_unit].all()  # never over a hole


@given(FLAGS)
def test_neighbours_are_merged_as_far_as_they_go(units: list[tuple[float, bool, bool]]) -> None:
    scores, loaded, follows = arrays(units)
    found = spans(scores, loaded, follows, max_count=len(units))
    assert sum(span.stop_unit - span.first_unit for span in found) == loaded.sum()
    starts = {span.first_unit for span in found}
    for span in found:
        if span.stop_unit in starts:
            assert not follows[span.stop_unit]


@given(FLAGS, st.integers(1, 6))
def test_the_newest_unit_keeps_a_place(
    units: list[tuple[float, bool, bool]], max_count: int
) -> None:
    scores, loaded, follows = arrays(units)
    loaded[-1] = True
    found = spans(scores, loaded, follows, max_count=max_count)
    assert [span.stop_unit for span in found if span.newest] == [len(units)]
