"""Videos of pictures whose every frame is known by its time and a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from svc.client import LookbackClient, PushEvent, PushFinished, PushLeft, SessionSettings
from svc.video.frames import ImageItem, ImageMedia
from tests.svc.ingest.calls import jpeg


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A source of pictures that can be read again from any time."""

    frames: Sequence[tuple[float, int]]
    """Presentation time in seconds, and the number that makes the picture."""
    media: ImageMedia = field(default_factory=ImageMedia)

    def items(self, from_pts_s: float | None = None) -> Iterator[ImageItem]:
        """Yields the pictures, from the last at or before the time on."""
        first = 0
        for index, (pts_s, _) in enumerate(self.frames):
            if from_pts_s is not None and pts_s <= from_pts_s:
                first = index
        for pts_s, number in self.frames[first:]:
            yield ImageItem(pts_s=pts_s, data=jpeg(number))


async def push(
    client: LookbackClient,
    session_id: str,
    frames: Sequence[tuple[float, int]],
    *,
    fps: float,
    reduction: str = "none",
    finish: bool = True,
) -> PushFinished | PushLeft:
    """Pushes a video to a session, which is made if it is not there; returns how it ended."""
    settings = SessionSettings(sample_fps=fps, reduction=reduction)
    await client.create_session(session_id, settings=settings, exist_ok=True)
    last: PushEvent | None = None
    async for event in client.push(session_id, Pictures(frames=frames), finish=finish):
        last = event
    assert isinstance(last, PushFinished if finish else PushLeft)
    return last
