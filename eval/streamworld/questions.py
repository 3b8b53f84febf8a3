"""Questions about a clip, with their answers and the frames that hold the evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eval.streamworld import wording
from eval.streamworld.render import NOWHERE
from eval.streamworld.vocabulary import (
    COLOURS,
    COUNTS,
    DIGITS,
    DIRECTIONS,
    ENTITIES,
    LETTERS,
    SCENES,
)
from eval.streamworld.wording import Kind
from eval.streamworld.world import MOVING_FRAMES, Clip, Event

MOST_COUNTED = len(COUNTS) - 1
_UNSEEN_COUNT_FRACTION = 0.1
TEXT_GROUPS = {"digit": DIGITS, "letter": LETTERS}

Turn = tuple[str, str]
"""An earlier question with its answer."""


@dataclass(frozen=True, kw_only=True)
class FrameQuestion:
    """A question asked when frame `asked_at` is the newest.

    Attributes:
        kind: The kind it counts as.
        asked_as: The kind whose wording it has (differs for "not_seen").
        text: The question.
        answer: The one right answer.
        asked_at: Frame index.
        evidence: Frames that show the answer, ascending; empty for "not_seen".
        anchors: The evidence frames retrieval should rank first.
        about: (entities, colours) that a frame must show, both, to be what is asked for.
        turns: Asked before it in the same conversation, oldest first.
    """

    kind: Kind
    asked_as: Kind
    text: str
    answer: str
    asked_at: int
    evidence: tuple[int, ...]
    anchors: tuple[int, ...]
    about: tuple[frozenset[int], frozenset[int]]
    turns: tuple[Turn, ...] = ()


ALL_ENTITIES = frozenset(range(len(ENTITIES)))
ALL_COLOURS = frozenset(range(len(COLOURS)))


def shows(event: Event, about: tuple[frozenset[int], frozenset[int]]) -> bool:
    """Whether the event is one of those asked for."""
    return event.entity in about[0] and event.colour in about[1]


def ask(
    clip: Clip, asked_at: int, kind: Kind, rng: np.random.Generator, *, target: Event | None = None
) -> FrameQuestion | None:
    """A question of one kind, or None when the clip so far allows none.

    Args:
        clip: The clip.
        asked_at: Newest frame; nothing later is used.
        kind: The kind.
        rng: Source of every draw.
        target: The event to ask about (past kinds, motion); any that qualifies by default.
    """
    seen = [e for e in clip.events if e.start <= asked_at]
    if kind in wording.NOW_KINDS:
        return _ask_now(clip, asked_at, kind, rng)
    if kind == "not_seen":
        return _ask_not_seen(seen, asked_at, rng)
    if not seen:
        return None
    if kind == "count":
        return _ask_count(seen, asked_at, rng, target)
    if kind == "order":
        return _ask_order(seen, asked_at, rng)
    return _ask_past(seen, asked_at, kind, rng, target)


def _phrase(kind: Kind, rng: np.random.Generator, **names: str) -> str:
    phrases = wording.PHRASES[kind]
    return phrases[int(rng.integers(len(phrases)))].format(**names)


def frames_of(event: Event, asked_at: int) -> range:
    """The event's frames up to and including `asked_at`."""
    return range(event.start, min(event.end, asked_at + 1))


def _ask_now(clip: Clip, asked_at: int, kind: Kind, rng: np.random.Generator) -> FrameQuestion:
    event = clip.event_at(asked_at)
    if kind == "now_scene":
        answer = SCENES[clip.scene_at(asked_at)]
    elif event is None:
        answer = wording.NOTHING
    elif kind == "now_what":
        answer = f"a {COLOURS[event.colour]} {ENTITIES[event.entity]}"
    else:
        answer = COLOURS[event.colour] if kind == "now_colour" else ENTITIES[event.entity]
    return FrameQuestion(
        kind=kind, asked_as=kind, text=_phrase(kind, rng), answer=answer, asked_at=asked_at,
        evidence=(asked_at,), anchors=(asked_at,), about=(ALL_ENTITIES, ALL_COLOURS),
    )  # fmt: skip


def about_for(
    kind: Kind, event: Event
) -> tuple[tuple[frozenset[int], frozenset[int]], dict[str, str]] | None:
    """What a question of this kind about `event` is about, and the words for it.

    None when the kind does not apply ("past_text" about a shape).
    """
    if kind == "past_object":
        about = (ALL_ENTITIES, frozenset({event.colour}))
        return about, {"c": COLOURS[event.colour]}
    if kind == "past_text":
        for name, group in TEXT_GROUPS.items():
            if ENTITIES[event.entity] in group:
                members = frozenset(ENTITIES.index(member) for member in group)
                words = {"g": name, "c": COLOURS[event.colour]}
                return (members, frozenset({event.colour})), words
        return None
    return (frozenset({event.entity}), ALL_COLOURS), {"e": ENTITIES[event.entity]}


def _ask_past(
    seen: list[Event], asked_at: int, kind: Kind, rng: np.random.Generator, target: Event | None
) -> FrameQuestion | None:
    options = []
    for event in seen if target is None else [target]:
        found = about_for(kind, event)
        if found is None or sum(shows(e, found[0]) for e in seen) != 1:
            continue
        if kind == "motion" and min(event.end, asked_at + 1) - event.start <= MOVING_FRAMES:
            continue
        options.append((event, *found))
    if kind == "motion" and options:
        # every direction equally often: otherwise "nowhere" is the safe guess
        present = sorted({event.direction for event, _, _ in options})
        chosen = present[int(rng.integers(len(present)))]
        options = [o for o in options if o[0].direction == chosen]
    if not options:
        return None
    event, about, words = options[int(rng.integers(len(options)))]
    answer = {
        "past_colour": COLOURS[event.colour],
        "past_object": ENTITIES[event.entity],
        "past_text": ENTITIES[event.entity],
        "past_scene": SCENES[event.scene],
        "motion": DIRECTIONS[event.direction],
    }[kind]
    evidence = tuple(frames_of(event, asked_at))
    moving = kind == "motion" and event.direction != NOWHERE
    if moving:
        evidence = evidence[:MOVING_FRAMES]
    return FrameQuestion(
        kind=kind, asked_as=kind, text=_phrase(kind, rng, **words), answer=answer,
        asked_at=asked_at, evidence=evidence, anchors=evidence, about=about,
    )  # fmt: skip


def _ask_not_seen(
    seen: list[Event], asked_at: int, rng: np.random.Generator
) -> FrameQuestion | None:
    kind = wording.ASKED_AS[int(rng.integers(len(wording.ASKED_AS)))]
    for _ in range(20):
        imagined = Event(
            entity=int(rng.integers(len(ENTITIES))), colour=int(rng.integers(len(COLOURS))),
            scene=0, direction=NOWHERE, start=0, end=1,
        )  # fmt: skip
        found = about_for(kind, imagined)
        if found is not None and not any(shows(e, found[0]) for e in seen):
            break
    else:
        return None
    return FrameQuestion(
        kind="not_seen", asked_as=kind, text=_phrase(kind, rng, **found[1]),
        answer=wording.NOT_SEEN, asked_at=asked_at, evidence=(), anchors=(), about=found[0],
    )  # fmt: skip


def _ask_count(
    seen: list[Event], asked_at: int, rng: np.random.Generator, target: Event | None
) -> FrameQuestion | None:
    if target is not None:
        entity = target.entity
    elif rng.random() < _UNSEEN_COUNT_FRACTION:
        entity = int(rng.integers(len(ENTITIES)))
    else:
        # the larger, the likelier: large counts are rare in clips
        counts: dict[int, list[int]] = {}
        for e in {x.entity for x in seen}:
            counts.setdefault(sum(x.entity == e for x in seen), []).append(e)
        usable = sorted(n for n in counts if n <= MOST_COUNTED)
        if not usable:
            return None
        weight = np.square(usable) / np.square(usable).sum()
        candidates = sorted(counts[usable[rng.choice(len(usable), p=weight)]])
        entity = candidates[int(rng.integers(len(candidates)))]
    events = [e for e in seen if e.entity == entity]
    if len(events) > MOST_COUNTED:
        return None
    return FrameQuestion(
        kind="count", asked_as="count", text=_phrase("count", rng, e=ENTITIES[entity]),
        answer=COUNTS[len(events)], asked_at=asked_at,
        evidence=tuple(f for e in events for f in frames_of(e, asked_at)),
        anchors=tuple(e.start for e in events), about=(frozenset({entity}), ALL_COLOURS),
    )  # fmt: skip


def _ask_order(seen: list[Event], asked_at: int, rng: np.random.Generator) -> FrameQuestion | None:
    unique = [e for e in seen if sum(x.entity == e.entity for x in seen) == 1]
    if len(unique) < 2:
        return None
    i, j = rng.choice(len(unique), 2, replace=False)
    return order_question(unique[int(i)], unique[int(j)], asked_at, rng)


def order_question(
    first_named: Event, second_named: Event, asked_at: int, rng: np.random.Generator
) -> FrameQuestion:
    """Which of two events, each the only one of its entity, came first."""
    pair = (first_named, second_named)
    earlier = min(pair, key=lambda e: e.start)
    in_time = sorted(pair, key=lambda e: e.start)
    return FrameQuestion(
        kind="order", asked_as="order", answer=ENTITIES[earlier.entity], asked_at=asked_at,
        text=_phrase("order", rng, e=ENTITIES[pair[0].entity], f=ENTITIES[pair[1].entity]),
        evidence=tuple(f for e in in_time for f in frames_of(e, asked_at)),
        anchors=tuple(e.start for e in in_time),
        about=(frozenset(e.entity for e in pair), ALL_COLOURS),
    )  # fmt: skip


def made_unanswerable(question: FrameQuestion) -> FrameQuestion:
    """The same question as if its evidence had never been: the answer is "not seen"."""
    return replace(question, kind="not_seen", answer=wording.NOT_SEEN, evidence=(), anchors=())
