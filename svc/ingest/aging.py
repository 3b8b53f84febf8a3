"""Which segments of a session that nobody pushes to are too old to be kept.

Age has two witnesses, and the younger counts. One is the wall clock: the time since a segment was
last written. The other is the stream's own time, from the segment's last unit to the newest, and
what the session has been seen to lie idle since, by a clock that nobody sets (`idle_times`). A
jump of either makes everything look old to one of them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from kvstore.trimming import StoredSegment


def expired_count(
    segments: Sequence[StoredSegment],
    *,
    retain_s: float,
    newest_pts_s: float,
    idle_s: float,
    now_unix_s: float,
) -> int:
    """Return how many of the segments, oldest first, are older than what is to be kept.

    Args:
        segments: oldest first.
        retain_s: how long units are kept; > 0.
        newest_pts_s: of the session's last unit.
        idle_s: for how long the session has been seen unchanged.
        now_unix_s: by the wall clock.
    """
    old = takewhile(
        lambda segment: (
            newest_pts_s - segment.last_pts_s + idle_s > retain_s
            and now_unix_s - segment.written_unix_s > retain_s
        ),
        segments,
    )
    return sum(1 for _ in old)
