"""Every draw is determined by (purpose, seed, index), and purposes never share a stream."""

from __future__ import annotations

import typing
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eval.streamworld.exam import make_exam
from eval.streamworld.seeds import Purpose, generator, sequence

PURPOSES = typing.get_args(Purpose)
seeds = st.integers(0, 2**40)
indices = st.lists(st.integers(0, 2**31 - 1), max_size=3)


@given(seed=seeds, index=indices)
def test_equal_names_give_equal_draws(seed: int, index: list[int]) -> None:
    first, second = (generator("training", seed, *index).integers(0, 2**62, 4) for _ in range(2))
    assert np.array_equal(first, second)


@given(seed=seeds, other=seeds, index=indices, other_index=indices)
def test_purposes_never_share_a_stream_whatever_seed_and_index(
    seed: int, other: int, index: list[int], other_index: list[int]
) -> None:
    pools = {tuple(sequence(p, seed, *index).generate_state(8)) for p in PURPOSES}
    assert len(pools) == len(PURPOSES)
    training = sequence("training", seed, *index).generate_state(8)
    evaluation = sequence("evaluation", other, *other_index).generate_state(8)
    assert not np.array_equal(training, evaluation)


@given(index=st.lists(st.integers(0, 50), min_size=1, max_size=3))
def test_a_longer_index_is_another_stream(index: list[int]) -> None:
    shorter = sequence("training", 1, *index[:-1]).generate_state(8)
    assert not np.array_equal(shorter, sequence("training", 1, *index).generate_state(8))


def test_equal_arguments_give_equal_exams_and_other_seeds_other_exams() -> None:
    first, again = (make_exam(seed=4, duration_s=120.0, fps=Fraction(2)) for _ in range(2))
    assert first == again
    assert make_exam(seed=5, duration_s=120.0, fps=Fraction(2)).clip != first.clip
    training = make_exam(seed=4, duration_s=120.0, fps=Fraction(2), purpose="training")
    assert training.clip != first.clip
