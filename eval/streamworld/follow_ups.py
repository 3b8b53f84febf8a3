"""Questions that lean on the turns before them, with the moments that hold their answers.

A follow-up names nothing: "what colour was it ?" after a turn about the star. A change of subject
names all it is about, after turns about something else: those must not lead it astray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations

import numpy as np

from eval.streamworld.exam import timed
from eval.streamworld.questions import FrameQuestion, Turn, ask
from eval.streamworld.wording import Kind
from eval.streamworld.world import Clip, Event

FOLLOW_UPS: dict[Kind, tuple[str, ...]] = {
    "past_colour": ("what colour was it ?", "which colour was it ?", "what colour did it have ?"),
    "past_scene": ("where did it appear ?", "where was it ?", "what was the background of it ?"),
    "motion": ("which way did it move ?", "where did it move ?", "which way did it go ?"),
}
SHAPES = (
    "follow-up",
    "follow-up to a follow-up",
    "follow-up, after a turn about another",
    "change of subject",
    "change of subject, after two turns",
)
_OLD_FRACTION = 0.6
"""What is asked about lies in this part of the clip: it has left the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """A question, the turns before it, and what is known of its answer."""

    shape: str
    """One of SHAPES."""
    turns: tuple[Turn, ...]
    """Earlier questions with their right answers, oldest first."""
    question: str
    answer: str
    asked_at_s: float
    evidence_s: tuple[tuple[float, float], ...]
    """Half-open spans that show the answer."""


def follow_ups(clip: Clip, fps: Fraction, rng: np.random.Generator) -> list[FollowUp]:
    """Returns all follow-ups that a clip allows, asked at its end.

    Args:
        clip: one whose early events include some of entities that appear once.
        fps: its frames a second.
        rng: source of wordings.
    """
    found: list[FollowUp] = []
    for shape, question in conversations(clip, rng):
        at = timed(question, fps, rng)
        found.append(
            FollowUp(
                shape=shape, turns=question.turns, question=question.text, answer=at.answer,
                asked_at_s=at.asked_at_s, evidence_s=at.evidence_s,
            )
        )  # fmt: skip
    return found


def conversations(clip: Clip, rng: np.random.Generator) -> Iterator[tuple[str, FrameQuestion]]:
    """Yields the shape and the last question, with its turns, of all that a clip allows."""
    events = _seen_once(clip)
    for event, other in zip(events, [*events[1:], *events[:1]], strict=True):
        if event is not other:
            yield from _about(clip, event, other, rng)


def _about(
    clip: Clip, event: Event, other: Event, rng: np.random.Generator
) -> Iterator[tuple[str, FrameQuestion]]:
    def put(
        shape: str, turns: list[Turn], question: FrameQuestion, text: str
    ) -> tuple[str, FrameQuestion]:
        return shape, replace(question, text=text, turns=tuple(turns))

    own, others = _questions(clip, event, rng), _questions(clip, other, rng)
    elsewhere = next(iter(others.values()))
    about_other = (elsewhere.text, elsewhere.answer)
    for kind, following in permutations(own, 2):
        named, second = own[kind], own[following]
        named_turn, follow = (named.text, named.answer), _worded(following, rng)
        yield put(SHAPES[0], [named_turn], second, follow)
        yield put(SHAPES[2], [about_other, named_turn], second, follow)
        for last in own.keys() - {kind, following}:
            turns = [named_turn, (follow, second.answer)]
            yield put(SHAPES[1], turns, own[last], _worded(last, rng))
    for question in own.values():
        yield put(SHAPES[3], [about_other], question, question.text)
        more = [(_worded(kind, rng), each.answer) for kind, each in others.items()][-1:]
        yield put(SHAPES[4], [about_other, *more], question, question.text)


def _seen_once(clip: Clip) -> list[Event]:
    early = [e for e in clip.events if e.end < _OLD_FRACTION * clip.frame_count]
    return [e for e in early if sum(e.entity == each.entity for each in clip.events) == 1]


def _questions(clip: Clip, event: Event, rng: np.random.Generator) -> dict[Kind, FrameQuestion]:
    last = clip.frame_count - 1
    asked = {kind: ask(clip, last, kind, rng, target=event) for kind in FOLLOW_UPS}
    return {kind: question for kind, question in asked.items() if question is not None}


def _worded(kind: Kind, rng: np.random.Generator) -> str:
    phrases = FOLLOW_UPS[kind]
    return phrases[int(rng.integers(len(phrases)))]
