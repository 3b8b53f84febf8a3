"""Which units a question may see. Nothing else decides it, so nothing else can leak the future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvstore.snapshot import Snapshot
from svc.rpc.errors import Reason, RequestError

Cut = Literal["at_or_before", "before"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The time was received, but units up to it may not be visible yet: look again."""


def cut_snapshot(
    snapshot: Snapshot, *, asked_at_s: float | None, cut: Cut, finished: bool
) -> Snapshot | Wait:
    """Returns the part of a snapshot that a question asked at a time may see.

    A finished session has no later time: asked beyond its end, it answers as of its end.

    Args:
        snapshot: what is visible now.
        asked_at_s: time of the question in the stream; None: now.
        cut: whether a unit whose last frame lies exactly at that time belongs to it.
        finished: the session takes no more video.

    Raises:
        RequestError: ASKED_AT_NOT_RECEIVED, ASKED_AT_BEFORE_START or SESSION_EMPTY.
    """
    if asked_at_s is None:
        return _not_empty(snapshot)
    settled_s = _settled_s(snapshot)
    if not finished and (settled_s is None or asked_at_s > settled_s):
        received_s = snapshot.received_pts_s
        if received_s is not None and asked_at_s <= received_s:
            return Wait()
        if received_s is None and settled_s is None:
            _not_empty(snapshot)
        newest_s = max(s for s in (received_s, settled_s) if s is not None)
        raise RequestError(
            Reason.ASKED_AT_NOT_RECEIVED,
            f"asked at {asked_at_s} s, the video was received up to {newest_s} s",
            asked_at_s=asked_at_s,
            received_pts_s=newest_s,
        )
    _not_empty(snapshot)
    side: Literal["right", "left"] = "right" if cut == "at_or_before" else "left"
    count = int(np.searchsorted(snapshot.last_pts_s, asked_at_s, side=side))
    if count == 0:
        first_s = float(snapshot.last_pts_s[0])
        raise RequestError(
            Reason.ASKED_AT_BEFORE_START,
            f"asked at {asked_at_s} s, the first moment that can be answered is at {first_s} s",
            asked_at_s=asked_at_s,
            first_pts_s=first_s,
        )
    return snapshot.cut(count)


def _settled_s(snapshot: Snapshot) -> float | None:
    """Returns the time up to which all units are visible, None before the first."""
    known = [] if snapshot.settled_pts_s is None else [snapshot.settled_pts_s]
    if snapshot.unit_count:
        known.append(float(snapshot.last_pts_s[-1]))
    return max(known, default=None)


def _not_empty(snapshot: Snapshot) -> Snapshot:
    if snapshot.unit_count == 0:
        raise RequestError(
            Reason.SESSION_EMPTY, "nothing of the video can be seen yet: the session is empty"
        )
    return snapshot
