"""Clips written act by act, where `world.make_clip` draws them."""

from __future__ import annotations

from eval.streamworld.render import NOWHERE, FrameSpec
from eval.streamworld.world import Clip, Event, Kind

Place = tuple[int, int]
"""Left and top edge of a sprite in pixels."""


class Script:
    """A clip that grows; objects stand still."""

    def __init__(self) -> None:
        """Begin an empty clip."""
        self._events: list[Event] = []
        self._images: list[FrameSpec] = []
        self._image_of: list[int] = []

    @property
    def frame_count(self) -> int:
        """Frames so far."""
        return len(self._image_of)

    def empty(self, scene: int, frames: int) -> None:
        """Show a scene with nothing in it."""
        self._hold(FrameSpec(scene=scene), frames)

    def show(self, kind: Kind, scene: int, place: Place, frames: int) -> Event:
        """Show an object.

        Args:
            kind: Entity and colour.
            scene: Index into SCENES.
            place: Where it stands.
            frames: How long, >= 1.
        """
        start = self.frame_count
        self._hold(_spec(kind, scene, place), frames)
        event = Event(
            entity=kind[0], colour=kind[1], scene=scene, direction=NOWHERE,
            start=start, end=self.frame_count,
        )  # fmt: skip
        self._events.append(event)
        return event

    def fade_object(
        self, kind: Kind, colour_to: int, scene: int, place: Place, frames: int
    ) -> None:
        """Show an object whose colour changes a little every frame; no event, as it has no name."""
        for i in range(frames):
            self._hold(_spec(kind, scene, place, colour_to, (i + 1) / (frames + 1)), 1)

    def fade_scene(self, scene: int, scene_to: int, frames: int) -> None:
        """Show an empty scene that becomes another a little every frame."""
        for i in range(frames):
            faded = (i + 1) / (frames + 1)
            self._hold(FrameSpec(scene=scene, scene_to=scene_to, faded=faded), 1)

    def clip(self) -> Clip:
        """Return what was written."""
        return Clip(
            events=tuple(self._events),
            images=tuple(self._images),
            image_of=tuple(self._image_of),
        )

    def _hold(self, spec: FrameSpec, frames: int) -> None:
        if frames > 0:
            self._images.append(spec)
            self._image_of += [len(self._images) - 1] * frames


def _spec(
    kind: Kind, scene: int, place: Place, colour_to: int = -1, faded: float = 0.0
) -> FrameSpec:
    return FrameSpec(
        scene=scene, entity=kind[0], colour=kind[1], x=place[0], y=place[1],
        colour_to=colour_to, faded=faded,
    )  # fmt: skip
