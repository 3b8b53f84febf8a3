"""Answers follow from what was shown up to the moment of asking, and from nothing else."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.streamworld import wording
from eval.streamworld.batches import BatchPlan, draw_clip, draw_questions
from eval.streamworld.exam import Question, make_exam
from eval.streamworld.questions import FrameQuestion, ask
from eval.streamworld.render import NOWHERE, FrameSpec
from eval.streamworld.seeds import generator
from eval.streamworld.vocabulary import (
    COLOURS,
    COUNTS,
    DIGITS,
    DIRECTIONS,
    ENTITIES,
    LETTERS,
    SCENES,
    UNK_ID,
    encode,
)
from eval.streamworld.world import Clip, Pace, make_clip

GROUP = {"digit": DIGITS, "letter": LETTERS}


def _clip(seed: int, frames: int, pool: int) -> Clip:
    rng = generator("tests", seed, 1)
    kinds = [(int(e), int(c)) for e in rng.permutation(len(ENTITIES))[:pool] for c in range(8)]
    return make_clip(frames, rng, pace=Pace(duration=(1, 6), gap=(0, 3)), grid_px=4, kinds=kinds)


def _appearances(clip: Clip, upto: int) -> list[list[FrameSpec]]:
    """Runs of frames that show one event, found from the frames, not from the event list.

    Two events in a row never show the same entity.
    """
    runs: list[list[FrameSpec]] = []
    previous = -1
    for image in clip.image_of[: upto + 1]:
        spec = clip.images[image]
        if spec.entity >= 0:
            if spec.entity != previous:
                runs.append([])
            runs[-1].append(spec)
        previous = spec.entity
    return runs


def _named(text: str, names: tuple[str, ...]) -> list[str]:
    return [word for word in text.split() if word in names]


def _expected(clip: Clip, q: FrameQuestion) -> set[str]:
    """Answers that the script supports; exactly one for a fair question."""
    now = clip.images[clip.image_of[q.asked_at]]
    runs = _appearances(clip, q.asked_at)
    entity, colour = ENTITIES[now.entity], COLOURS[now.colour]
    if q.asked_as == "now_scene":
        return {SCENES[now.scene]}
    if q.asked_as in wording.NOW_KINDS:
        full = {"now_what": f"a {colour} {entity}", "now_object": entity, "now_colour": colour}
        return {full[q.asked_as] if now.entity >= 0 else wording.NOTHING}
    entities = _named(q.text, ENTITIES)
    if q.asked_as == "count":
        return {str(sum(ENTITIES[r[0].entity] == entities[0] for r in runs))}
    if q.asked_as == "order":
        firsts = [ENTITIES[r[0].entity] for r in runs if ENTITIES[r[0].entity] in entities]
        assert sorted(firsts) == sorted(entities)
        return {firsts[0]}
    colours = _named(q.text, COLOURS)
    groups = [g for name, g in GROUP.items() if name in q.text.split()]
    matching = [
        r
        for r in runs
        if (not entities or ENTITIES[r[0].entity] in entities)
        and (not colours or COLOURS[r[0].colour] in colours)
        and all(ENTITIES[r[0].entity] in g for g in groups)
    ]
    directions = [{s.direction for s in r} - {NOWHERE} or {NOWHERE} for r in matching]
    found = {
        "past_colour": {COLOURS[r[0].colour] for r in matching},
        "past_object": {ENTITIES[r[0].entity] for r in matching},
        "past_text": {ENTITIES[r[0].entity] for r in matching},
        "past_scene": {SCENES[r[0].scene] for r in matching},
        "motion": {DIRECTIONS[d] for ds in directions for d in ds},
    }[q.asked_as]
    assert len(matching) <= 1, "the key must be unique up to the moment of asking"
    return found or {wording.NOT_SEEN}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(1, 60),
    pool=st.integers(2, len(ENTITIES)),
    kind=st.sampled_from(wording.KINDS),
    data=st.data(),
)
def test_the_answer_is_the_only_one_the_frames_so_far_support(
    seed: int, frames: int, pool: int, kind: wording.Kind, data: st.DataObject
) -> None:
    clip = _clip(seed, frames, pool)
    asked_at = data.draw(st.integers(0, frames - 1))
    question = ask(clip, asked_at, kind, generator("tests", seed, 2))
    if question is None:
        return
    assert question.kind == kind
    assert _expected(clip, question) == {question.answer}
    assert UNK_ID not in encode(question.text) + encode(question.answer)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(wording.KINDS), asked_at=st.integers(0, 30))
def test_nothing_after_the_question_can_change_it(
    seed: int, kind: wording.Kind, asked_at: int
) -> None:
    clip = _clip(seed, 60, 12)
    later = min((e.start for e in clip.events if e.start > asked_at), default=60)
    shorter = Clip(
        events=tuple(e for e in clip.events if e.start < later),
        images=clip.images,
        image_of=clip.image_of[:later],
    )
    whole, cut = (ask(c, asked_at, kind, generator("tests", seed, 3)) for c in (clip, shorter))
    assert whole == cut


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(wording.KINDS), asked_at=st.integers(0, 47))
def test_evidence_is_not_later_than_the_question_and_holds_what_it_asks_for(
    seed: int, kind: wording.Kind, asked_at: int
) -> None:
    clip = _clip(seed, 48, 10)
    question = ask(clip, asked_at, kind, generator("tests", seed, 4))
    if question is None:
        return
    assert set(question.anchors) <= set(question.evidence)
    assert list(question.evidence) == sorted(set(question.evidence))
    assert all(0 <= f <= asked_at for f in question.evidence)
    if kind in wording.NOW_KINDS:
        return
    for frame in question.evidence:
        spec = clip.images[clip.image_of[frame]]
        assert spec.entity in question.about[0]
        assert spec.colour in question.about[1]


def test_motion_is_asked_about_every_direction_alike() -> None:
    answers: Counter[str] = Counter()
    for seed in range(400):
        rng = generator("tests", seed, 5)
        clip = make_clip(40, rng, pace=Pace(duration=(2, 8), gap=(0, 2)), grid_px=4)
        question = ask(clip, 39, "motion", rng)
        if question is not None:
            answers[question.answer] += 1
    assert set(answers) == set(DIRECTIONS)
    assert answers["nowhere"] / answers.total() < 0.25


@pytest.mark.parametrize("duration_s", [120.0, 300.0, 3600.0])
def test_an_exam_asks_every_kind_with_four_options_and_evidence_inside_the_clip(
    duration_s: float,
) -> None:
    exam = make_exam(seed=11, duration_s=duration_s, questions_per_kind=3)
    assert {q.kind for q in exam.questions} == set(wording.KINDS)
    for q in exam.questions:
        assert len(set(q.options)) == 4
        assert q.answer in q.options
        assert 0 <= q.asked_at_s < duration_s
        assert all(0 <= start < end <= q.asked_at_s + 1 for start, end in q.evidence_s)
        assert bool(q.evidence_s) == (q.kind != "not_seen")


def _look_alikes(question: Question, shown: set[tuple[str, str]]) -> bool:
    colours = _named(question.text, COLOURS)
    return not colours or any(colour in colours for _, colour in shown)


@pytest.mark.parametrize("seed", range(6))
def test_what_an_exam_calls_not_seen_is_never_seen_but_parts_of_it_are(seed: int) -> None:
    exam = make_exam(seed=seed, duration_s=600.0, questions_per_kind=6)
    unseen = [q for q in exam.questions if q.kind == "not_seen"]
    assert unseen
    for q in unseen:
        events = [e for e in exam.clip.events if e.start <= q.asked_at_s]
        shown = {(ENTITIES[e.entity], COLOURS[e.colour]) for e in events}
        group = next((g for name, g in GROUP.items() if name in q.text.split()), ENTITIES)
        named = _named(re.sub(r"digit|letter", "", q.text), ENTITIES) or list(group)
        colours = _named(q.text, COLOURS) or list(COLOURS)
        assert not any(entity in named and colour in colours for entity, colour in shown)
        if q.asked_as == "past_text":
            assert _look_alikes(q, shown)


@pytest.mark.parametrize("duration_s", [120.0, 600.0])
def test_what_an_exam_counts_can_be_counted_from_its_frames(duration_s: float) -> None:
    for seed in range(8):
        exam = make_exam(seed=seed, duration_s=duration_s, questions_per_kind=4)
        for q in exam.questions:
            if q.kind == "count":
                runs = _appearances(exam.clip, int(q.asked_at_s))
                (name,) = _named(q.text, ENTITIES)
                assert q.answer == str(sum(ENTITIES[r[0].entity] == name for r in runs))


def test_training_asks_for_every_count_and_never_one_that_frames_do_not_show() -> None:
    plan = BatchPlan(
        clips=1, frames=12, questions=8, pace=Pace(duration=(1, 1), gap=(0, 0)), picked=12,
        kinds={"count": 1}, late=0.15, pool=6, counted_fraction=0.9,
    )  # fmt: skip
    answers: Counter[str] = Counter()
    for seed in range(120):
        rng = generator("tests", seed, 6)
        clip = draw_clip(plan, 1, rng)
        for question in draw_questions(clip, plan, rng):
            assert _expected(clip, question) == {question.answer}
            answers[question.answer] += 1
    assert min(answers[count] for count in COUNTS) / answers.total() > 0.03, answers
