"""When to send: items at the speed of their own clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from svc.video.frames import ChunkItem, Item


def send_offsets(items: Iterable[Item], speed: float) -> Iterator[tuple[float, Item]]:
    """Yield each item with the time to send it, in seconds after the first.

    Like a live camera, nothing leaves before its own presentation time: a packet goes when the
    latest pts up to it is due, so offsets never fall, although packets with B-frames are not in
    order of pts. Chunks of a container have no time: they go at once, at the pace they are read.

    Args:
        items: in the order they are sent.
        speed: 1.0 is the video's own speed, 2.0 twice as fast, math.inf as fast as possible.
    """
    if not speed > 0:
        raise ValueError(f"speed must be > 0, got {speed}")
    first_pts_s: float | None = None
    latest_pts_s = 0.0
    for item in items:
        if isinstance(item, ChunkItem):
            yield 0.0, item
            continue
        if first_pts_s is None:
            first_pts_s = latest_pts_s = item.pts_s
        latest_pts_s = max(latest_pts_s, item.pts_s)
        yield (latest_pts_s - first_pts_s) / speed, item
