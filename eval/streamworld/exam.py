"""Held-out exams: a long clip, and questions with answers, options and evidence times."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from eval.streamworld import wording
from eval.streamworld.questions import (
    FrameQuestion,
    about_for,
    ask,
    order_question,
    shows,
)
from eval.streamworld.seeds import Purpose, generator
from eval.streamworld.vocabulary import COLOURS, DIGITS, ENTITIES, LETTERS
from eval.streamworld.world import Clip, Event, Kind, Pace, make_clip

EXAM_PACE = Pace(duration=(4, 12), gap=(0, 4))
_NEEDLE_SPAN = (0.03, 0.5)
_NEEDLES = 4
_COUNTED = 2
_MOST_COUNTED = 5
_UNSEEN = 3
_OPTION_COUNT = 4
_LEAST_FRAMES = 120


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question put to the service.

    Attributes:
        kind: One of wording.KINDS.
        asked_as: The kind whose wording it has (differs for "not_seen").
        text: The question.
        answer: The right answer.
        options: Four answers to choose from, the right one among them.
        asked_at_s: Stream time at which it is asked; frames up to and including it may be used.
        evidence_s: Half-open spans [start, end) that show the answer; empty for "not_seen".
        drift: Whether it is about before or after a slow change; "" where it is about none.
    """

    kind: wording.Kind
    asked_as: wording.Kind
    text: str
    answer: str
    options: tuple[str, ...]
    asked_at_s: float
    evidence_s: tuple[tuple[float, float], ...]
    drift: Literal["", "before", "after"] = ""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """A clip at `fps` frames a second (frame k at k/fps) and the questions about it."""

    clip: Clip
    fps: Fraction
    questions: tuple[Question, ...]


def make_exam(
    *,
    seed: int,
    duration_s: float,
    fps: Fraction = Fraction(1),
    questions_per_kind: int = 1,
    grid_px: int = 1,
    purpose: Purpose = "evaluation",
) -> Exam:
    """An exam; equal arguments give equal exams.

    Needle objects appear exactly once, between 3 % and 50 % of the clip, and are asked about in
    its last fifth; what is on screen is asked anywhere. Objects, colours and digits that are
    asked for though never seen have look-alikes in the clip.

    Args:
        seed: Any number >= 0; never shares draws with training.
        duration_s: Length; it must give at least 120 frames.
        fps: Frames a second.
        questions_per_kind: How many questions of each kind.
        grid_px: Sprites start at multiples of this.
        purpose: Namespace of the seed.

    Raises:
        ValueError: The clip is too short for its needles.
    """
    frame_count = int(duration_s * fps)
    if frame_count < _LEAST_FRAMES:
        raise ValueError(f"an exam needs at least {_LEAST_FRAMES} frames, not {frame_count}")
    rng = generator(purpose, seed, frame_count)
    clip, cast = _cast_clip(frame_count, grid_px, rng)
    asked: list[FrameQuestion] = []
    for kind in wording.KINDS:
        found = 0
        for _ in range(60):
            if found == questions_per_kind:
                break
            question = _ask(clip, cast, kind, rng)
            if question is not None and question not in asked:
                asked.append(question)
                found += 1
    asked.sort(key=lambda q: q.asked_at)
    return Exam(clip=clip, fps=fps, questions=tuple(timed(q, fps, rng) for q in asked))


@dataclass(frozen=True, kw_only=True)
class _Cast:
    """Who plays which part.

    Attributes:
        needles: Events of entities that appear once. The first has a colour of its own; the second
            is a digit or letter, the only one of its group in its colour.
        counted: Entities that appear one to five times.
        unseen: Kinds of entities and of a colour that never appear.
        never_together: Kinds of the other text group in a colour that none of the group ever has.
    """

    needles: tuple[Event, ...]
    counted: tuple[int, ...]
    unseen: tuple[Kind, ...]
    never_together: tuple[Kind, ...]


def _cast_clip(frame_count: int, grid_px: int, rng: np.random.Generator) -> tuple[Clip, _Cast]:
    """Draw parts until a clip plays them all out."""
    while True:
        entities = [int(e) for e in rng.permutation(len(ENTITIES))]
        own_colour, unseen_colour, *common = (int(c) for c in rng.permutation(len(COLOURS)))
        second = next(e for e in entities if ENTITIES[e] in DIGITS + LETTERS)
        entities.remove(second)
        others, entities = entities[: _NEEDLES - 1], entities[_NEEDLES - 1 :]
        counted, entities = tuple(entities[:_COUNTED]), entities[_COUNTED:]
        unseen, extras = entities[:_UNSEEN], entities[_UNSEEN:]
        group, missing = DIGITS, LETTERS
        if ENTITIES[second] in LETTERS:
            group, missing = missing, group
        second_colour, missing_colour = (int(c) for c in rng.choice(common, 2))
        apart = {(ENTITIES.index(name), second_colour) for name in group}
        never = {(ENTITIES.index(name), missing_colour) for name in missing}
        allowed = {
            e: [c for c in common if (e, c) not in apart | never] for e in range(len(ENTITIES))
        }
        needles = [(e, int(rng.choice(allowed[e]))) for e in others]
        needles = [(others[0], own_colour), (second, second_colour), *needles[1:]]
        counted_kinds = [
            (e, int(rng.choice(allowed[e])))
            for e in counted
            for _ in range(int(rng.integers(1, _MOST_COUNTED + 1)))
        ]
        planned = _plan(frame_count, needles, counted_kinds, rng)
        background = [(e, c) for e in extras for c in allowed[e]]
        clip = make_clip(
            frame_count, rng, pace=EXAM_PACE, grid_px=grid_px, kinds=background, planned=planned
        )
        if len(clip.events) > max(planned) + 1:
            return clip, _Cast(
                needles=tuple(clip.events[i] for i in list(planned)[:_NEEDLES]),
                counted=counted,
                unseen=tuple((e, unseen_colour) for e in unseen),
                never_together=tuple(sorted(never)),
            )


def _plan(
    frame_count: int, needles: list[Kind], counted: list[Kind], rng: np.random.Generator
) -> dict[int, Kind]:
    """Ordinals of the events that needles and counted entities take, needles first.

    Where a short clip has no room, some of the counted appearances are left out, and so are those
    right after another of the same entity: they would look like one.
    """
    expected = frame_count / EXAM_PACE.mean_frames
    low = int(expected * _NEEDLE_SPAN[0])
    high = max(int(expected * _NEEDLE_SPAN[1]), low + len(needles))
    places = [int(i) for i in rng.permutation(np.arange(low, high))[: len(needles)]]
    free = [i for i in range(int(expected * 0.75)) if i not in places]
    kept = [counted[int(i)] for i in rng.permutation(len(counted))][: len(free)]
    planned = dict(zip(places, needles, strict=True))
    for place, kind in zip(rng.permutation(free).tolist(), kept, strict=False):
        beside = (planned.get(place - 1), planned.get(place + 1))
        if all(other is None or other[0] != kind[0] for other in beside):
            planned[place] = kind
    return planned


def _ask(
    clip: Clip, cast: _Cast, kind: wording.Kind, rng: np.random.Generator
) -> FrameQuestion | None:
    if kind in wording.NOW_KINDS:
        return ask(clip, int(rng.integers(clip.frame_count)), kind, rng)
    late = clip.frame_count - 1 - int(rng.integers(max(1, clip.frame_count // 5)))
    needles = cast.needles
    if kind == "not_seen":
        return _ask_unseen(clip, cast, late, rng)
    if kind == "order":
        i, j = (int(k) for k in rng.choice(len(needles), 2, replace=False))
        return order_question(needles[i], needles[j], late, rng)
    if kind == "count":
        entity = int(rng.choice(cast.counted))
        target = next((e for e in clip.events if e.entity == entity), None)
        if target is None:
            return None
        return ask(clip, late, kind, rng, target=target)
    if kind in ("past_object", "past_text"):
        target = needles[0] if kind == "past_object" else needles[1]
    else:
        target = needles[int(rng.integers(len(needles)))]
    return ask(clip, late, kind, rng, target=target)


def _ask_unseen(
    clip: Clip, cast: _Cast, asked_at: int, rng: np.random.Generator
) -> FrameQuestion | None:
    """A "not seen" question about an unseen entity, the unseen colour, or an unseen combination."""
    kind = wording.ASKED_AS[int(rng.integers(len(wording.ASKED_AS)))]
    pool = cast.never_together if kind == "past_text" else cast.unseen
    entity, colour = pool[int(rng.integers(len(pool)))]
    imagined = Event(entity=entity, colour=colour, scene=0, direction=0, start=0, end=1)
    found = about_for(kind, imagined)
    if found is None or any(shows(e, found[0]) for e in clip.events if e.start <= asked_at):
        return None
    phrases = wording.PHRASES[kind]
    return FrameQuestion(
        kind="not_seen", asked_as=kind, answer=wording.NOT_SEEN, asked_at=asked_at,
        text=phrases[int(rng.integers(len(phrases)))].format(**found[1]),
        evidence=(), anchors=(), about=found[0],
    )  # fmt: skip


def timed(question: FrameQuestion, fps: Fraction, rng: np.random.Generator) -> Question:
    """A question about frames as one about seconds, with options to choose from."""
    return Question(
        kind=question.kind, asked_as=question.asked_as, text=question.text, answer=question.answer,
        options=_options(question, rng), asked_at_s=float(question.asked_at / fps),
        evidence_s=_spans(question.evidence, fps),
    )  # fmt: skip


def _spans(frames: tuple[int, ...], fps: Fraction) -> tuple[tuple[float, float], ...]:
    """Runs of consecutive frames as half-open spans in seconds."""
    spans: list[list[int]] = []
    for frame in frames:
        if spans and spans[-1][1] == frame:
            spans[-1][1] = frame + 1
        else:
            spans.append([frame, frame + 1])
    return tuple((float(a / fps), float(b / fps)) for a, b in spans)


def _options(question: FrameQuestion, rng: np.random.Generator) -> tuple[str, ...]:
    answer = question.answer
    wrong = [w for w in _wrong_answers(question, rng) if w != answer]
    picked = [wrong[int(i)] for i in rng.permutation(len(wrong))[: _OPTION_COUNT - 1]]
    if question.kind == "order":
        # the other object named is always among the options
        pair = [ENTITIES[e] for e in sorted(question.about[0])]
        other = next(name for name in pair if name != answer)
        picked = [other, *[w for w in picked if w != other]][: _OPTION_COUNT - 1]
    picked.insert(int(rng.integers(_OPTION_COUNT)), answer)
    return tuple(picked)


def _wrong_answers(question: FrameQuestion, rng: np.random.Generator) -> list[str]:
    if question.kind == "now_what":
        entities, colours = rng.permutation(len(ENTITIES)), rng.permutation(len(COLOURS))
        return [
            f"a {COLOURS[c]} {ENTITIES[e]}"
            for e, c in zip(entities[: len(COLOURS)], colours, strict=True)
        ]
    if question.kind == "not_seen":
        member = {
            "past_object": "circle", "past_colour": "red", "past_scene": "night",
            "past_text": "0", "motion": "left",
        }[question.asked_as]  # fmt: skip
        if "letter" in question.text.split():
            member = LETTERS[0]
        return list(wording.answer_words(question.asked_as, member))
    if question.answer == wording.NOTHING:
        return list(COLOURS if question.kind == "now_colour" else ENTITIES)
    return list(wording.answer_words(question.kind, question.answer))
