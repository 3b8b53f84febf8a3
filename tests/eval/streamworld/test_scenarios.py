"""What each scenario promises, and what it takes from a memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.exam import Exam, make_exam
from eval.streamworld.forward import frame_features
from eval.streamworld.render import look_alikes, render
from eval.streamworld.scenarios import AGES_S, SCENARIOS, Scenario, make_scenario
from eval.streamworld.seeds import generator
from eval.streamworld.staging import STAGED, Staged, stage
from eval.streamworld.vocabulary import COLOURS, ENTITIES, SCENES
from svc.engine.reduction.base import ReductionState, UnitFeatures
from svc.engine.reduction.spec import ReductionSpec

CHECKPOINT = "eval/streamworld/checkpoint"


def exam_of(scenario: Scenario, seed: int, duration_s: float = 600.0) -> Exam:
    return make_scenario(
        scenario, seed=seed, duration_s=duration_s, questions_per_kind=2, purpose="tests"
    )


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), scenario=st.sampled_from(SCENARIOS))
def test_equal_arguments_give_equal_exams_of_the_asked_length(
    seed: int, scenario: Scenario
) -> None:
    exam = exam_of(scenario, seed)
    assert exam == exam_of(scenario, seed)
    assert exam.clip.frame_count == 600
    assert exam != exam_of(scenario, seed + 1)


def test_plain_is_todays_exam() -> None:
    assert make_scenario("plain", seed=4, duration_s=300.0) == make_exam(seed=4, duration_s=300.0)


def test_training_and_evaluation_never_share_a_scenario() -> None:
    for scenario in SCENARIOS:
        training = make_scenario(scenario, seed=1, duration_s=300.0, purpose="training")
        assert training.clip != make_scenario(scenario, seed=1, duration_s=300.0).clip


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scenario=st.sampled_from(STAGED))
def test_answers_follow_from_the_frames_up_to_the_question(seed: int, scenario: Staged) -> None:
    exam = exam_of(scenario, seed)
    clip = exam.clip
    for question in exam.questions:
        asked_at = int(question.asked_at_s)
        seen = [clip.images[image] for image in clip.image_of[: asked_at + 1]]
        # The frame after it shows the same: a runner may or may not see it.
        assert clip.images[clip.image_of[asked_at + 1]] == seen[-1]
        assert all(end <= asked_at + 1 for _, end in question.evidence_s)
        words = question.text.split()
        shown = [spec for spec in seen if spec.entity >= 0 and not spec.faded]
        if question.kind == "past_object":
            (colour,) = [word for word in words if word in COLOURS]
            found = {ENTITIES[s.entity] for s in shown if COLOURS[s.colour] == colour}
            assert found == {question.answer}
        elif question.kind in ("past_colour", "past_scene"):
            (entity,) = [word for word in words if word in ENTITIES]
            of_entity = [s for s in shown if ENTITIES[s.entity] == entity]
            names = (
                {COLOURS[s.colour] for s in of_entity}
                if question.kind == "past_colour"
                else {SCENES[s.scene] for s in of_entity}
            )
            assert names == {question.answer}
        elif question.kind == "now_scene":
            assert SCENES[seen[-1].scene] == question.answer
        elif question.kind == "not_seen" and question.asked_as != "past_text":
            named = [word for word in words if word in ENTITIES + COLOURS]
            assert not any({ENTITIES[s.entity], COLOURS[s.colour]} & set(named) for s in shown)
        assert len(set(question.options)) == 4
        assert question.answer in question.options


def test_static_streams_are_mostly_still_and_ask_at_every_age_they_hold() -> None:
    exam = make_scenario("static", seed=0, duration_s=14_400.0, questions_per_kind=1)
    clip = exam.clip
    changes = sum(a != b for a, b in zip(clip.image_of, clip.image_of[1:], strict=False))
    assert changes < 0.02 * clip.frame_count
    ages = [q.asked_at_s - q.evidence_s[-1][1] for q in exam.questions if q.kind == "past_colour"]
    assert len(ages) == len(AGES_S)
    # Asked at the first frame after which nothing changes for a frame.
    assert all(0 <= age - wanted < 10 for age, wanted in zip(ages, AGES_S, strict=True))


def test_a_flash_lasts_one_frame() -> None:
    staging = stage("flash", 600, generator("tests", 3))
    assert [event.end - event.start for event in staging.needles] == [1, 1, 1, 1]


def test_near_duplicates_stand_where_their_needle_stood_and_look_like_it() -> None:
    staging = stage("near_duplicates", 600, generator("tests", 3))
    clip = staging.clip
    for needle in staging.needles:
        spec = clip.images[clip.image_of[needle.start]]
        before = clip.images[clip.image_of[needle.start - 1]]
        assert (before.x, before.y, before.scene) == (spec.x, spec.y, spec.scene)
        assert before.entity in look_alikes(spec.entity)[:8]


def test_what_looks_most_like_a_digit_is_known() -> None:
    assert ENTITIES[look_alikes(ENTITIES.index("3"))[0]] in ("8", "2", "9", "5")
    assert look_alikes(0) != look_alikes(1)
    assert 0 not in look_alikes(0)


@pytest.mark.parametrize("scenario", STAGED)
def test_a_clip_that_is_too_short_is_refused(scenario: Staged) -> None:
    with pytest.raises(ValueError, match="at least"):
        make_scenario(scenario, seed=0, duration_s=119.0)


def test_drift_is_asked_about_before_and_after() -> None:
    exams = [exam_of("drift", seed) for seed in range(4)]
    assert {q.drift for exam in exams for q in exam.questions} == {"", "before", "after"}


def least_likeness(reduction: str, features: torch.Tensor) -> float:
    """Least cosine, over frames and places, of what was there and what was last kept there."""
    policy, state = ReductionSpec.parse(reduction).make(), ReductionState()
    shown, least = features[0].clone(), 1.0
    for embeds in features:
        pixels = torch.zeros(1, 3, 4, 4)
        unit = UnitFeatures(embeds=embeds, pixels=pixels, grid=(3, 3), gap_before=False)
        kept, state = policy.choose(unit, state)  # type: ignore[union-attr]
        shown[kept] = embeds[kept]
        least = min(least, float(torch.cosine_similarity(shown, embeds, dim=1).min()))
    return least


def test_dtd_loses_a_drift_whose_steps_lie_below_its_threshold_and_last_kept_keeps_it() -> None:
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    staging = stage("drift", 300, generator("tests", 5))
    before, after = staging.before[0], staging.after[0]
    if after.entity != before.entity:
        after = next(e for e in staging.after if e.entity == before.entity)
    clip = staging.clip
    frames = [clip.images[clip.image_of[i]] for i in range(before.start, after.start + 1)]
    with torch.no_grad():
        features = frame_features(model, torch.from_numpy(render(frames)))
    # Every step is below the threshold, and the whole way is far above it.
    steps = torch.cosine_similarity(features[1:], features[:-1], dim=2)
    whole = torch.cosine_similarity(features[0], features[-1], dim=1)
    threshold = 0.9
    assert steps.min() > threshold > whole.min()
    assert least_likeness(f"last_kept:{threshold}", features) >= threshold
    assert least_likeness(f"dtd:{threshold}", features) < threshold
