"""How each scenario is staged: who plays, how fast, and the acts that questions are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from eval.streamworld.render import FREE_PX, look_alikes
from eval.streamworld.script import Place, Script
from eval.streamworld.vocabulary import COLOURS, DIGITS, ENTITIES, LETTERS, SCENES
from eval.streamworld.world import Clip, Event, Kind, Pace

Staged = Literal["static", "drift", "flash", "distractors", "near_duplicates"]
STAGED: tuple[Staged, ...] = get_args(Staged)

_SOLO = 3
_UNSEEN = 3
_TWINS = 3
_SCENE_CHANGE_FRACTION = 0.3
_FADE_FRACTION, _FADE_FRAMES = 1 / 12, (40, 120)
_HOLD_FRAMES = 8
_ACTS_SPAN: dict[Staged, tuple[float, float]] = {
    "static": (0.005, 0.02),
    "drift": (0.03, 0.15),
    "flash": (0.03, 0.25),
    "distractors": (0.03, 0.25),
    "near_duplicates": (0.03, 0.25),
}
"""When acts begin, as shares of the clip: early, so that they can be asked about much later."""
_LEAST_FRAMES: dict[Staged, int] = {
    "static": 120,
    "drift": 300,
    "flash": 120,
    "distractors": 120,
    "near_duplicates": 240,
}
_PACES: dict[Staged, Pace] = {
    "static": Pace(duration=(4, 12), gap=(60, 600)),
    "drift": Pace(duration=(4, 12), gap=(0, 8)),
    "flash": Pace(duration=(1, 2), gap=(10, 60)),
    "distractors": Pace(duration=(2, 4), gap=(0, 1)),
    "near_duplicates": Pace(duration=(4, 8), gap=(0, 4)),
}


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who may appear.

    Attributes:
        solo: Each the only one of its entity and of its colour.
        text: A digit or letter; none of its group shares its colour.
        unseen: Entities, and a colour, that never appear.
        background: Everyone else.
        spare: Colours that nobody else has.
    """

    solo: tuple[Kind, ...]
    text: Kind
    unseen: tuple[Kind, ...]
    background: tuple[Kind, ...]
    spare: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Staging:
    """A staged clip and what questions are about.

    Attributes:
        clip: The clip.
        cast: Who played.
        needles: Events that questions about the past are about.
        before: Those of them that were there before a slow change.
        after: Those of them that were there only after one.
    """

    clip: Clip
    cast: Cast
    needles: tuple[Event, ...]
    before: tuple[Event, ...] = ()
    after: tuple[Event, ...] = ()


def stage(scenario: Staged, frame_count: int, rng: np.random.Generator) -> Staging:
    """Plays a scenario.

    Raises:
        ValueError: The clip is too short for the acts.
    """
    if frame_count < (least := _LEAST_FRAMES[scenario]):
        raise ValueError(f"{scenario!r} needs at least {least} frames, not {frame_count}")
    stage = _Stage(scenario, frame_count, rng)
    low, high = _ACTS_SPAN[scenario]
    acts = _acts(scenario, stage)
    places = np.sort(rng.uniform(low, high, len(acts)) * frame_count).astype(int)
    for place, i in zip(places, rng.permutation(len(acts)), strict=True):
        stage.fill(int(place))
        acts[int(i)]()
    stage.fill(frame_count)
    needles = (*stage.needles, *stage.before, *stage.after)
    return Staging(
        clip=stage.script.clip(), cast=stage.cast, needles=needles,
        before=tuple(stage.before), after=tuple(stage.after),
    )  # fmt: skip


def _draw_cast(rng: np.random.Generator, spare_count: int) -> Cast:
    entities = [int(e) for e in rng.permutation(len(ENTITIES))]
    colours = [int(c) for c in rng.permutation(len(COLOURS))]
    text = next(e for e in entities if ENTITIES[e] in DIGITS + LETTERS)
    entities.remove(text)
    group = DIGITS if ENTITIES[text] in DIGITS else LETTERS
    # Spare colours are taken from those of soloists: there are few.
    solo_count = _SOLO - (1 if spare_count else 0)
    solo, unseen, extras = (
        entities[:solo_count],
        entities[solo_count : solo_count + _UNSEEN],
        entities[solo_count + _UNSEEN :],
    )
    own, spare = colours[:solo_count], colours[solo_count : solo_count + spare_count]
    unseen_colour, *common = colours[solo_count + spare_count :]
    return Cast(
        solo=tuple(zip(solo, own, strict=True)),
        text=(text, common[0]),
        unseen=tuple((e, unseen_colour) for e in unseen),
        background=tuple(
            (e, c) for e in extras for c in common if ENTITIES[e] not in group or c != common[0]
        ),
        spare=tuple(spare),
    )


class _Stage:
    def __init__(self, scenario: Staged, frame_count: int, rng: np.random.Generator) -> None:
        self.cast = _draw_cast(rng, spare_count=2 if scenario == "drift" else 0)
        self.script = Script()
        self.needles: list[Event] = []
        self.before: list[Event] = []
        self.after: list[Event] = []
        self.rng = rng
        self.frame_count = frame_count
        self.pace = _PACES[scenario]
        self.scene = int(rng.integers(len(SCENES)))
        self._last = -1

    def fill(self, until: int) -> None:
        """Plays the background up to a frame."""
        while (left := until - self.script.frame_count) > 0:
            if self.rng.random() < _SCENE_CHANGE_FRACTION:
                self.scene = self.other_scene()
            gap = int(self.rng.integers(self.pace.gap[0], self.pace.gap[1] + 1))
            self.script.empty(self.scene, min(gap, left))
            left -= gap
            if left > 0:
                others = [k for k in self.cast.background if k[0] != self._last]
                kind = others[int(self.rng.integers(len(others)))]
                self._last = kind[0]
                self.script.show(kind, self.scene, self.place(), min(self.duration(), left))

    def duration(self) -> int:
        return int(self.rng.integers(self.pace.duration[0], self.pace.duration[1] + 1))

    def place(self) -> Place:
        x, y = self.rng.integers(FREE_PX + 1, size=2)
        return int(x), int(y)

    def other_scene(self) -> int:
        return (self.scene + 1 + int(self.rng.integers(len(SCENES) - 1))) % len(SCENES)


Act = Callable[[], None]


def _acts(scenario: Staged, stage: _Stage) -> Sequence[Act]:
    kinds = (*stage.cast.solo, stage.cast.text)
    if scenario == "flash":
        return [lambda k=k: _show(stage, k, frames=1) for k in kinds]  # type: ignore[misc]
    if scenario == "near_duplicates":
        return [lambda k=k: _show_among_twins(stage, k) for k in kinds]  # type: ignore[misc]
    if scenario == "drift":
        return [
            lambda: _fade_object(stage, stage.cast.solo[0], stage.cast.spare[0]),
            lambda: _fade_object(stage, stage.cast.solo[1], stage.cast.spare[1]),
            lambda: _fade_scene(stage, stage.cast.text),
        ]
    return [lambda k=k: _show(stage, k, frames=stage.duration()) for k in kinds]  # type: ignore[misc]


def _show(stage: _Stage, kind: Kind, *, frames: int) -> None:
    stage.needles.append(stage.script.show(kind, stage.scene, stage.place(), frames))
    stage.script.empty(stage.scene, 2)


def _show_among_twins(stage: _Stage, kind: Kind) -> None:
    """The needle, and before and after it what looks most like it, at its very place."""
    place, frames, scene = stage.place(), stage.duration(), stage.scene
    twins = [
        next(((e, c) for e, c in stage.cast.background if e == entity), None)
        for entity in look_alikes(kind[0])
    ]
    chosen = [twin for twin in twins if twin is not None][:_TWINS]
    chosen = [chosen[int(i)] for i in stage.rng.permutation(len(chosen))]
    stage.script.show(chosen[0], scene, place, frames)
    stage.needles.append(stage.script.show(kind, scene, place, frames))
    for twin in chosen[1:]:
        stage.scene = stage.other_scene()
        stage.script.show(twin, stage.scene, place, frames)


def _fade_object(stage: _Stage, kind: Kind, colour_to: int) -> None:
    place, script = stage.place(), stage.script
    stage.before.append(script.show(kind, stage.scene, place, _HOLD_FRAMES))
    script.fade_object(kind, colour_to, stage.scene, place, _fade_frames(stage))
    stage.after.append(script.show((kind[0], colour_to), stage.scene, place, _HOLD_FRAMES))
    script.empty(stage.scene, 2)


def _fade_scene(stage: _Stage, kind: Kind) -> None:
    """The scene fades while it is empty; what appears then stands before the new one."""
    scene_to = stage.other_scene()
    stage.script.empty(stage.scene, _HOLD_FRAMES)
    stage.script.fade_scene(stage.scene, scene_to, _fade_frames(stage))
    stage.scene = scene_to
    stage.script.empty(scene_to, _HOLD_FRAMES)
    stage.after.append(stage.script.show(kind, scene_to, stage.place(), stage.duration()))


def _fade_frames(stage: _Stage) -> int:
    return int(np.clip(stage.frame_count * _FADE_FRACTION, *_FADE_FRAMES))
