"""When an item is due: sent at the pace of the video, or as fast as it is taken."""

from __future__ import annotations

import time
from collections.abc import Callable

from svc.client.replay import pts_s_of
from svc.video.frames import Item


class Pacer:
    """One clock for a whole push: what an interruption has delayed is caught up at once."""

    def __init__(self, speed: float, now: Callable[[], float] = time.monotonic) -> None:
        """`speed`: seconds of video per second; 0: as fast as the server takes it."""
        if not 0 <= speed < float("inf"):
            raise ValueError(f"speed must be >= 0 and finite, got {speed}")
        self._speed = speed
        self._now = now
        self._anchor: tuple[float, float] | None = None  # clock, presentation time

    def start(self, durable_pts_s: float | None) -> None:
        """Lets the clock begin at the durable time, if the video is not shown from its start."""
        if self._anchor is None and durable_pts_s is not None:
            self._anchor = (self._now(), durable_pts_s)

    def due_in_s(self, item: Item) -> float:
        """Returns how long to wait before the item is sent; 0: not at all.

        Never before its own time, so a frame that others are built on may go out late, with them.
        """
        time_s = pts_s_of(item)
        if self._speed == 0 or time_s is None:
            return 0.0
        if self._anchor is None:
            self._anchor = (self._now(), time_s)
        started_at, start_s = self._anchor
        return max(0.0, started_at + (time_s - start_s) / self._speed - self._now())
