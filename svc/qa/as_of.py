"""What a question may see, of units and of earlier turns. Nothing else decides it or can leak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvstore.control import Watermarks
from kvstore.snapshot import Snapshot
from svc.rpc.errors import Reason, RequestError

Cut = Literal["at_or_before", "before"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The time was received, but units up to it may not be visible yet: look again."""


def cut_snapshot(
    snapshot: Snapshot,
    watermarks: Watermarks,
    *,
    asked_at_s: float | None,
    cut: Cut,
    finished: bool,
) -> Snapshot | Wait:
    """Returns the part of a snapshot that a question asked at a time may see.

    A finished session has no later time: asked beyond its end, it answers as of its end.

    Args:
        snapshot: what is visible now.
        watermarks: what was received and settled, looked up before the snapshot was taken.
        asked_at_s: time of the question in the stream; None: now.
        cut: whether a unit whose last frame lies exactly at that time belongs to it.
        finished: the session takes no more video.

    Raises:
        RequestError: ASKED_AT_NOT_RECEIVED, ASKED_AT_BEFORE_START or SESSION_EMPTY.
    """
    if asked_at_s is None:
        return _not_empty(snapshot)
    if not finished:
        if watermarks.settled_pts_s is not None and watermarks.epoch != snapshot.epoch:
            return Wait()  # a writer began between the two looks
        settled_s, received_s = _settled_and_received(snapshot, watermarks)
        if settled_s < asked_at_s <= received_s:
            return Wait()
        if asked_at_s > received_s:
            raise _not_received(snapshot, asked_at_s, received_s)
    _not_empty(snapshot)
    side: Literal["right", "left"] = "right" if cut == "at_or_before" else "left"
    count = int(np.searchsorted(snapshot.last_pts_s, asked_at_s, side=side))
    if count <= snapshot.first_unit:
        first_s = float(snapshot.last_pts_s[snapshot.first_unit])
        why = "; what came before was forgotten" if snapshot.first_unit else ""
        raise RequestError(
            Reason.ASKED_AT_BEFORE_START,
            f"asked at {asked_at_s} s, the first moment that can be answered is at {first_s} s"
            f"{why}",
            asked_at_s=asked_at_s,
            first_pts_s=first_s,
        )
    return snapshot.cut(count)


def cut_history(
    history: Sequence[tuple[str, str]], until_s: Sequence[float | None], snapshot: Snapshot
) -> tuple[tuple[str, str], ...]:
    """Returns the turns of a conversation that tell of nothing after a snapshot.

    Args:
        history: (question, answer) turns, oldest first.
        until_s: time of the last frame that each turn's answer could see; None: not said, and the
            turn stays. A turn's own history was cut to that time when it was asked.
        snapshot: what the question may see, not empty.
    """
    seen_until_s = float(snapshot.last_pts_s[-1])
    return tuple(
        turn
        for turn, at_s in zip(history, until_s, strict=True)
        if at_s is None or at_s <= seen_until_s
    )


def _settled_and_received(snapshot: Snapshot, watermarks: Watermarks) -> tuple[float, float]:
    """Returns the times up to which all units are visible, and up to which video has come."""
    visible_s = float(snapshot.last_pts_s[-1]) if snapshot.unit_count else -math.inf
    marks = (watermarks.settled_pts_s, watermarks.received_pts_s)
    settled_s, received_s = (-math.inf if mark is None else mark for mark in marks)
    settled_s = max(settled_s, visible_s)
    return settled_s, max(received_s, settled_s)


def _not_received(snapshot: Snapshot, asked_at_s: float, received_s: float) -> RequestError:
    if received_s == -math.inf:
        _not_empty(snapshot)
    return RequestError(
        Reason.ASKED_AT_NOT_RECEIVED,
        f"asked at {asked_at_s} s, the video was received up to {received_s} s",
        asked_at_s=asked_at_s,
        received_pts_s=received_s,
    )


def _not_empty(snapshot: Snapshot) -> Snapshot:
    if snapshot.unit_count == snapshot.first_unit:
        raise RequestError(
            Reason.SESSION_EMPTY, "nothing of the video can be seen yet: the session is empty"
        )
    return snapshot
