"""Whether a session that turns out to be finished has all that a push sent."""

from __future__ import annotations

from svc.client.errors import FINISH_UNKNOWN, LookbackError
from svc.client.events import PushProgress
from svc.client.replay import pts_s_of
from svc.video.frames import Item, PacketItem

_ROUNDING_S = 0.001


class SentTail:
    """The last of what was sent, over all calls of a push."""

    def __init__(self) -> None:
        self._last_pts_s: float | None = None
        self._untimed = False
        self.target_fps = 0.0
        """Frames per second that the session keeps; 0: not known yet."""

    def add(self, item: Item) -> None:
        """Notes an item that is about to be sent."""
        pts_s = pts_s_of(item)
        if pts_s is None:
            self._untimed = True
        elif not (isinstance(item, PacketItem) and item.discard):  # that one is never shown
            self._last_pts_s = pts_s if self._last_pts_s is None else max(self._last_pts_s, pts_s)

    def check(self, progress: PushProgress) -> None:
        """Checks that a finished session goes as far as what was sent.

        Of the last frames, one is kept for each period of sampling: what is kept ends less than
        one before the last. Bytes of a container do not tell their times.

        Raises:
            LookbackError: FINISH_UNKNOWN: it ends earlier, or that cannot be told.
        """
        durable_pts_s, last_pts_s = progress.durable_pts_s, self._last_pts_s
        if last_pts_s is None and not self._untimed:
            return  # nothing was sent: nothing can lack
        stored = "nothing" if durable_pts_s is None else f"video up to {durable_pts_s:g} s"
        metadata = {"durable_pts_s": str(durable_pts_s), "last_sent_pts_s": str(last_pts_s)}
        if last_pts_s is None:
            raise LookbackError(
                reason=FINISH_UNKNOWN,
                message=f"the session is finished and has {stored}; whether that is all that was "
                "sent cannot be told, for the answer was lost",
                metadata=metadata,
            )
        period_s = 1 / self.target_fps if self.target_fps > 0 else 0.0
        if durable_pts_s is None or last_pts_s - durable_pts_s > period_s + _ROUNDING_S:
            raise LookbackError(
                reason=FINISH_UNKNOWN,
                message=f"the session was finished before all was stored: it has {stored}, "
                f"and up to {last_pts_s:g} s was sent",
                metadata=metadata,
            )
