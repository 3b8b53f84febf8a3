"""What goes of a session when its age is changed: told, and asked about where it is much."""

from __future__ import annotations

import datetime
import math
from typing import TYPE_CHECKING

from svc.cli.amounts import format_bytes, format_duration
from svc.cli.times import format_time

if TYPE_CHECKING:
    from svc.client import Session

_SOON_S = 3600.0
"""Who made a mistake may notice it later than this: what goes before is asked about."""


def loses_most(session: Session, retain_s: float, now: datetime.datetime) -> bool:
    """Returns whether most of a session may go soon under an age that it is to be given.

    Nothing is older by the wall clock than its session. For how long the stream of a finished one
    has stood still is not known here: it may be as long.

    Args:
        session: as it is before.
        retain_s: 0, which is what the server says for all, and infinity are not asked about.
        now: with a time zone.
    """
    rules, age_s = session.keeping_in_force, (now - session.create_time).total_seconds()
    if not 0 < retain_s < age_s + _SOON_S or not _span_s(session):
        return False
    if rules is not None and 0 < rules.retain_s <= retain_s:
        return False  # what goes under it goes already
    going_s = _before_pins_s(session)
    if not _is_finished(session):
        going_s = min(going_s, _span_s(session) - retain_s)
    return going_s > _span_s(session) / 2


def what_ages(session: Session, retain_s: float, now: datetime.datetime) -> str:
    """Says what goes of a session under an age; empty where nothing ever does.

    Args:
        session: as it is.
        retain_s: the age that holds for it; 0 and infinity: nothing is forgotten.
        now: with a time zone.
    """
    stats, span_s = session.stats, _span_s(session)
    if stats is None or not 0 < retain_s < math.inf or not span_s:
        return ""
    older_s = min(max(0.0, span_s - retain_s), _before_pins_s(session))
    told = (
        f"what is older than {format_duration(retain_s)} goes from {session.session_id}, by the "
        f"video's time and by the clock: {format_time(older_s)} of its {format_time(span_s)} "
        f"({stats.durable_unit_count} units, {format_bytes(stats.disk_bytes)}) is older now by the "
        "video's time"
    )
    if (now - session.create_time).total_seconds() <= retain_s:
        told += ", and nothing yet by the clock"
    if session.pinned_spans:
        return f"{told}. What is pinned stays, and what lies behind it"
    if _is_finished(session):
        return (
            f"{told}. It is finished, so that all of it grows older, and a finished session of "
            "which nothing is left is deleted"
        )
    return f"{told}. Its last segment stays while it is live"


def _span_s(session: Session) -> float:
    """Returns how long the stored video is, a frame at least; 0 where there is none."""
    stats = session.stats
    if stats is None or stats.first_pts_s is None or stats.last_durable_pts_s is None:
        return 0.0
    return stats.last_durable_pts_s - stats.first_pts_s + 1.0 / (session.settings.sample_fps or 1.0)


def _before_pins_s(session: Session) -> float:
    """Returns how much of it may go: what lies before the first pinned span."""
    stats = session.stats
    first_s = 0.0 if stats is None else stats.first_pts_s or 0.0
    starts_s = [span.start_s - first_s for span in session.pinned_spans]
    return max(0.0, min([_span_s(session), *starts_s]))


def _is_finished(session: Session) -> bool:
    from svc.client import SessionState

    return session.state is SessionState.FINISHED
