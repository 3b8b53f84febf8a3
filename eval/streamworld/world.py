"""What happens in a clip: events one after another, and the frames they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.streamworld.render import NOWHERE, FrameSpec, position_range
from eval.streamworld.vocabulary import COLOURS, ENTITIES, SCENES

MOVING_FRAMES = 3
_LEAST_MOVING_EVENT = 4
_SCENE_CHANGE_FRACTION = 0.3
_GAP_FRACTION = 0.6


@dataclass(frozen=True, kw_only=True)
class Event:
    """One object on screen, frames [start, end).

    Attributes:
        entity: Index into ENTITIES.
        colour: Index into COLOURS.
        scene: Index into SCENES.
        direction: Index into DIRECTIONS; the first MOVING_FRAMES frames move unless NOWHERE.
        start: First frame.
        end: Frame after the last.
    """

    entity: int
    colour: int
    scene: int
    direction: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip: its events, and its frames as unique images and an index into them.

    Attributes:
        events: In order of time, not overlapping.
        images: The unique frames.
        image_of: Per frame, index into `images`.
    """

    events: tuple[Event, ...]
    images: tuple[FrameSpec, ...]
    image_of: tuple[int, ...]

    @property
    def frame_count(self) -> int:
        return len(self.image_of)

    def event_at(self, frame: int) -> Event | None:
        """The event on screen at `frame`, or None."""
        return next((e for e in self.events if e.start <= frame < e.end), None)

    def scene_at(self, frame: int) -> int:
        """Index into SCENES of the background at `frame`."""
        return self.images[self.image_of[frame]].scene


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast things happen: event durations and gaps between events, in frames, inclusive."""

    duration: tuple[int, int] = (2, 9)
    gap: tuple[int, int] = (0, 4)

    @property
    def mean_frames(self) -> float:
        """Mean frames per event, its gap included."""
        return sum(self.duration) / 2 + _GAP_FRACTION * sum(self.gap) / 2


Kind = tuple[int, int]


def every_kind() -> list[Kind]:
    """All (entity, colour) pairs."""
    return [(e, c) for e in range(len(ENTITIES)) for c in range(len(COLOURS))]


class _Builder:
    def __init__(self, frame_count: int) -> None:
        self.frame_count = frame_count
        self.images: list[FrameSpec] = []
        self.image_of: list[int] = []

    def show(self, spec: FrameSpec, count: int) -> None:
        count = min(count, self.frame_count - len(self.image_of))
        if count > 0:
            self.images.append(spec)
            self.image_of += [len(self.images) - 1] * count

    @property
    def full(self) -> bool:
        return len(self.image_of) >= self.frame_count


def make_clip(
    frame_count: int,
    rng: np.random.Generator,
    *,
    pace: Pace,
    grid_px: int,
    kinds: Sequence[Kind] | None = None,
    planned: Mapping[int, Kind] | None = None,
) -> Clip:
    """A random clip.

    Args:
        frame_count: Length in frames.
        rng: Source of every draw.
        pace: Durations and gaps.
        grid_px: Sprites start at multiples of this.
        kinds: (entity, colour) pairs that events are drawn from; all by default.
        planned: What the events of these ordinals show instead of a draw from `kinds`.
    """
    pool = every_kind() if kinds is None else kinds
    planned = planned or {}
    builder, events = _Builder(frame_count), list[Event]()
    scene, last_entity = int(rng.integers(len(SCENES))), -1
    while not builder.full:
        if rng.random() < _SCENE_CHANGE_FRACTION:
            scene = int(rng.integers(len(SCENES)))
        if rng.random() < _GAP_FRACTION:
            gap = int(rng.integers(pace.gap[0], pace.gap[1] + 1))
            builder.show(FrameSpec(scene=scene), gap)
            if builder.full:
                break
        kind = planned.get(len(events))
        while kind is None:
            drawn = pool[int(rng.integers(len(pool)))]
            if drawn[0] != last_entity or len(pool) < 3:
                kind = drawn
        last_entity = kind[0]
        duration = int(rng.integers(pace.duration[0], pace.duration[1] + 1))
        events.append(_show_event(builder, kind, scene, duration, grid_px, rng))
    return Clip(
        events=tuple(events), images=tuple(builder.images), image_of=tuple(builder.image_of)
    )


def _show_event(
    builder: _Builder, kind: Kind, scene: int, duration: int, grid_px: int, rng: np.random.Generator
) -> Event:
    direction = int(rng.integers(5)) if duration >= _LEAST_MOVING_EVENT else NOWHERE
    step = 8 if grid_px >= 8 else 12
    x0, x1, y0, y1 = position_range(direction, steps=MOVING_FRAMES, step_px=step)
    x, y = (
        int(rng.integers(-(-low // grid_px), high // grid_px + 1)) * grid_px
        for low, high in ((x0, x1), (y0, y1))
    )
    start = len(builder.image_of)
    left = duration
    if direction != NOWHERE:
        dx, dy = ((-step, 0), (step, 0), (0, -step), (0, step))[direction]
        for i in range(MOVING_FRAMES):
            builder.show(_spec(kind, scene, x + i * dx, y + i * dy, direction), 1)
        x, y, left = x + MOVING_FRAMES * dx, y + MOVING_FRAMES * dy, duration - MOVING_FRAMES
    builder.show(_spec(kind, scene, x, y, NOWHERE), left)
    return Event(
        entity=kind[0], colour=kind[1], scene=scene, direction=direction,
        start=start, end=len(builder.image_of),
    )  # fmt: skip


def _spec(kind: Kind, scene: int, x: int, y: int, direction: int) -> FrameSpec:
    return FrameSpec(scene=scene, entity=kind[0], colour=kind[1], x=x, y=y, direction=direction)
