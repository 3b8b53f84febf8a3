"""Follow-ups name nothing, changes of subject all they need, and their moments show the answers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from eval.streamworld.converse import Outcome, rows
from eval.streamworld.exam import make_exam
from eval.streamworld.follow_ups import SHAPES, FollowUp, follow_ups
from eval.streamworld.vocabulary import COLOURS, DIRECTIONS, ENTITIES, SCENES, UNK_ID, encode
from eval.streamworld.world import Clip

FPS = Fraction(1)
NAMES = frozenset(ENTITIES + COLOURS)


@pytest.fixture(scope="module", params=[0, 1])
def clip(request: pytest.FixtureRequest) -> Clip:
    return make_exam(seed=request.param, duration_s=300, fps=FPS).clip


@pytest.fixture(scope="module")
def made(clip: Clip) -> list[FollowUp]:
    return follow_ups(clip, FPS, np.random.default_rng(0))


def test_every_shape_is_made_and_equal_draws_give_equal_ones(
    clip: Clip, made: list[FollowUp]
) -> None:
    assert {each.shape for each in made} == set(SHAPES)
    assert follow_ups(clip, FPS, np.random.default_rng(0)) == made


def test_only_the_turns_say_what_a_follow_up_is_about(made: list[FollowUp]) -> None:
    for each in made:
        named = NAMES & set(each.question.split())
        assert bool(named) == each.shape.startswith("change of subject")
        if not named:
            assert any(NAMES & set(question.split()) for question, _ in each.turns)
        texts = [each.question, each.answer, *(text for turn in each.turns for text in turn)]
        assert UNK_ID not in [token for text in texts for token in encode(text)]


def test_the_moments_show_the_answer_and_lie_before_the_question(
    clip: Clip, made: list[FollowUp]
) -> None:
    for each in made:
        for start_s, end_s in each.evidence_s:
            assert end_s <= 0.6 * clip.frame_count < each.asked_at_s
            for frame in range(int(start_s), int(end_s)):
                event = clip.event_at(frame)
                assert event is not None
                assert each.answer in {
                    COLOURS[event.colour],
                    SCENES[event.scene],
                    DIRECTIONS[event.direction],
                    ENTITIES[event.entity],
                }


def test_shares_stand_beside_those_without_turns() -> None:
    shape = SHAPES[0]
    outcomes = [
        Outcome(shape=shape, with_turns=with_turns, cited=cited, right=False)
        for with_turns, cited in ((True, True), (True, True), (False, True), (False, False))
    ]
    cited, right = rows(outcomes)
    assert (cited.value, cited.baseline, cited.ratio) == (1.0, 0.5, 2.0)
    assert (right.value, right.baseline, right.ratio) == (0.0, 0.0, None)
