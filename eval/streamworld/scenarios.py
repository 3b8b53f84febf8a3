"""Exams by scenario: "plain" is `exam.make_exam`; the others are what a memory may lose.

static
    Minutes in which nothing happens; early events are asked about at ages up to four hours.
drift
    An object's colour, or the scene, changes over many frames, a little each; asked about before
    and after.
flash
    Objects that are there for one frame.
distractors
    Objects without pause, many that share a property with what is asked for.
near_duplicates
    Beside what is asked for, at its very place, what looks most like it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from eval.streamworld import wording
from eval.streamworld.exam import Exam, make_exam, timed
from eval.streamworld.questions import FrameQuestion, about_for, ask, order_question, shows
from eval.streamworld.seeds import Purpose, generator
from eval.streamworld.staging import STAGED, Staged, Staging, stage
from eval.streamworld.world import Clip, Event

Scenario = Literal["plain", "static", "drift", "flash", "distractors", "near_duplicates"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)

AGES_S = (10, 60, 300, 900, 3600, 7200, 14_000)
"""Ages of evidence that are asked about in "static" streams that last so long."""
_LEAST_AGE_FRAMES = 20
PAST_KINDS: tuple[wording.Kind, ...] = ("past_object", "past_colour", "past_scene", "past_text")
_OF_FADED_OBJECT: tuple[wording.Kind, ...] = ("past_object", "now_colour", "now_what")
_ATTEMPTS = 60


def make_scenario(
    scenario: Scenario,
    *,
    seed: int,
    duration_s: float,
    fps: Fraction = Fraction(1),
    questions_per_kind: int = 1,
    purpose: Purpose = "evaluation",
) -> Exam:
    """An exam; equal arguments give equal exams.

    Args:
        scenario: What it is like.
        seed: Any number >= 0; never shares draws with training.
        duration_s: Length.
        fps: Frames a second.
        questions_per_kind: How many questions of each kind, and in "static" of each age.
        purpose: Namespace of the seed.

    Raises:
        ValueError: The clip is too short.
    """
    if scenario == "plain":
        return make_exam(
            seed=seed, duration_s=duration_s, fps=fps,
            questions_per_kind=questions_per_kind, purpose=purpose,
        )  # fmt: skip
    frame_count = int(duration_s * fps)
    rng = generator(purpose, seed, frame_count, 1 + STAGED.index(scenario))
    staging = stage(scenario, frame_count, rng)
    asked = list(_asked(scenario, staging, fps, questions_per_kind, rng))
    asked.sort(key=lambda pair: pair[0].asked_at)
    questions = tuple(replace(timed(q, fps, rng), drift=drift) for q, drift in asked)
    return Exam(clip=staging.clip, fps=fps, questions=questions)


def settled(clip: Clip, frame: int) -> bool:
    """Whether the next frame shows the same: nothing depends on whether it was seen yet."""
    if frame + 1 >= clip.frame_count:
        return False
    spec, following = (clip.images[clip.image_of[i]] for i in (frame, frame + 1))
    return spec == following and clip.event_at(frame) == clip.event_at(frame + 1)


_Asked = tuple[FrameQuestion, Literal["", "before", "after"]]


def _asked(
    scenario: Staged, staging: Staging, fps: Fraction, per_kind: int, rng: np.random.Generator
) -> list[_Asked]:
    found: list[_Asked] = []
    ages = [int(age * fps) for age in AGES_S] if scenario == "static" else [None]
    for kind in (*PAST_KINDS, "order", "not_seen"):
        for age in ages:
            found += _draw(per_kind, lambda k=kind, a=age: _ask_past(staging, k, a, rng))  # type: ignore[misc]
    for kind in wording.NOW_KINDS:
        found += _draw(per_kind, lambda k=kind: _ask_now(staging, k, rng))  # type: ignore[misc]
    return found


def _draw(count: int, ask_one: Callable[[], _Asked | None]) -> list[_Asked]:
    """Up to `count` different questions; fewer where the clip has no more."""
    found: list[_Asked] = []
    for _ in range(_ATTEMPTS):
        if len(found) == count:
            break
        asked = ask_one()
        if asked is not None and asked not in found:
            found.append(asked)
    return found


def _ask_past(
    staging: Staging, kind: wording.Kind, age: int | None, rng: np.random.Generator
) -> _Asked | None:
    target = staging.needles[int(rng.integers(len(staging.needles)))]
    asked_at = _asked_at(staging.clip, target, age, rng)
    if asked_at is None:
        return None
    if kind == "not_seen":
        question = _ask_unseen(staging, asked_at, rng)
    elif kind == "order":
        question = _ask_order(staging, target, asked_at, rng)
    else:
        question = ask(staging.clip, asked_at, kind, rng, target=target)
    return None if question is None else (question, _drift(staging, target, kind))


def _asked_at(clip: Clip, target: Event, age: int | None, rng: np.random.Generator) -> int | None:
    """The first settled frame at the age, or at one that is drawn; None: the clip ends before."""
    longest = clip.frame_count - 2 - target.end
    if age is None:
        if longest <= _LEAST_AGE_FRAMES:
            return None
        age = int(np.exp(rng.uniform(np.log(_LEAST_AGE_FRAMES), np.log(longest))))
    frames = range(target.end + age, clip.frame_count)
    return next((frame for frame in frames if settled(clip, frame)), None)


def _drift(staging: Staging, target: Event, kind: wording.Kind) -> Literal["", "before", "after"]:
    """Which side of a slow change decides the answer: the text appears after a scene has faded."""
    scene_faded = target.entity == staging.cast.text[0]
    if kind not in (("past_scene", "now_scene") if scene_faded else _OF_FADED_OBJECT):
        return ""
    return "before" if target in staging.before else "after" if target in staging.after else ""


def _ask_order(
    staging: Staging, target: Event, asked_at: int, rng: np.random.Generator
) -> FrameQuestion | None:
    others = [e for e in staging.needles if e.entity != target.entity and e.end <= asked_at]
    if not others:
        return None
    pair = (target, others[int(rng.integers(len(others)))])
    seen = [e for e in staging.clip.events if e.start <= asked_at]
    if any(sum(x.entity == e.entity for x in seen) != 1 for e in pair):
        return None
    first, second = (pair[int(i)] for i in rng.permutation(2))
    return order_question(first, second, asked_at, rng)


def _ask_unseen(staging: Staging, asked_at: int, rng: np.random.Generator) -> FrameQuestion | None:
    kind = wording.ASKED_AS[int(rng.integers(len(wording.ASKED_AS)))]
    pool = staging.cast.unseen
    entity, colour = pool[int(rng.integers(len(pool)))]
    imagined = Event(entity=entity, colour=colour, scene=0, direction=0, start=0, end=1)
    found = about_for(kind, imagined)
    if found is None or any(shows(e, found[0]) for e in staging.clip.events):
        return None
    phrases = wording.PHRASES[kind]
    return FrameQuestion(
        kind="not_seen", asked_as=kind, answer=wording.NOT_SEEN, asked_at=asked_at,
        text=phrases[int(rng.integers(len(phrases)))].format(**found[1]),
        evidence=(), anchors=(), about=found[0],
    )  # fmt: skip


def _ask_now(staging: Staging, kind: wording.Kind, rng: np.random.Generator) -> _Asked | None:
    """About an event of the scenario as often as about any moment."""
    clip = staging.clip
    target = staging.needles[int(rng.integers(len(staging.needles)))]
    frame = int(rng.integers(clip.frame_count))
    drift: Literal["", "before", "after"] = ""
    if rng.random() < 0.5:
        frame = int(rng.integers(target.start, target.end))
        drift = _drift(staging, target, kind)
    if not settled(clip, frame) or clip.images[clip.image_of[frame]].faded:
        return None
    question = ask(clip, frame, kind, rng)
    return None if question is None else (question, drift)
