"""Pinning spans of a session, and what the store is to leave alone for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvstore.pins import Span, check_span, pin, touches, unpin
from kvstore.reader import SessionReader
from kvstore.session import load_session
from kvstore.snapshot import Snapshot
from svc.config import Settings
from svc.ingest.keeping import why_dropped
from svc.ingest.session_records import Session
from svc.ingest.sessions import Sessions
from svc.rpc.errors import Reason, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """A span that was pinned."""

    session: Session
    thinned_unit_count: int
    """Units of it that were thinned before."""


def pin_span(settings: Settings, sessions: Sessions, session_id: str, span: Span) -> Pinned:
    """Pins a span, of which nothing may have been dropped. No writer may be dropping meanwhile.

    Raises:
        RequestError: SPAN_DROPPED; INVALID_REQUEST: the session is over and has no video there.
        KVStoreError: there is no such session, it is damaged, or the span cannot be pinned.
    """
    check_span(span)
    root, before = settings.data_dir, sessions.get(session_id)
    whole = spans_to_keep([span], load_session(root, session_id).unit_period_s)

    def add(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        # While the record is held: a sweep that drops holds it too.
        snapshot = _snapshot(root, session_id)
        _check_not_dropped(before, snapshot, span, why_dropped(before.keeping.in_force(settings)))
        if before.state == "finished":
            _check_has_video(session_id, snapshot, span, whole)
        return pin(spans, span)

    session = sessions.change_pins(session_id, add)
    snapshot = _snapshot(root, session_id)
    of_span = touches(whole, snapshot.first_pts_s, snapshot.last_pts_s)
    return Pinned(session=session, thinned_unit_count=int((of_span & snapshot.coarsened).sum()))


def unpin_span(sessions: Sessions, session_id: str, span: Span) -> Session:
    """Unpins what of a span is pinned.

    Raises:
        KVStoreError: there is no such session, its record is damaged, or there is no such span.
    """
    return sessions.change_pins(session_id, partial(unpin, removed=span))


def spans_to_keep(spans: Sequence[Span], unit_period_s: float) -> list[Span]:
    """Returns the spans of time in which the units of pinned moments begin.

    A frame stands for the stream until the next is due: the one before a pinned span shows how it
    begins.
    """
    return [(math.nextafter(start_s - unit_period_s, math.inf), end_s) for start_s, end_s in spans]


def spans_to_keep_of(root: Path, session_id: str) -> list[Span]:
    """Returns them as the session's record has them now; blocks.

    Raises:
        KVStoreError: there is no such session, or its record is damaged: then nobody can say what
            may go.
    """
    record = load_session(root, session_id)
    return spans_to_keep(record.pinned_spans, record.unit_period_s)


def _snapshot(root: Path, session_id: str) -> Snapshot:
    reader = SessionReader.open(root, session_id)
    try:
        return reader.snapshot()
    finally:
        reader.close()


def _check_not_dropped(session: Session, snapshot: Snapshot, span: Span, why: str) -> None:
    first = snapshot.first_unit
    if first == 0 or first == snapshot.unit_count:
        return
    first_pts_s = float(snapshot.first_pts_s[first])
    if span[0] >= first_pts_s:
        return
    if span[1] <= first_pts_s:
        gone = "all of it is gone"
        left = f"the session remembers from {first_pts_s:g} s on"
    else:
        gone = f"what lies before {first_pts_s:g} s is gone"
        left = f"from {first_pts_s:g} s on it is there, and can be pinned"
    raise RequestError(
        Reason.SPAN_DROPPED,
        f"the span from {span[0]:g} s to {span[1]:g} s of session {session.session_id!r} "
        f"cannot be pinned: {gone} ({why}); {left}",
        session_id=session.session_id,
        start_s=span[0],
        end_s=span[1],
        first_pts_s=first_pts_s,
    )


def _check_has_video(
    session_id: str, snapshot: Snapshot, span: Span, whole: Sequence[Span]
) -> None:
    if touches(whole, snapshot.first_pts_s, snapshot.last_pts_s).any():
        return
    first, count = snapshot.first_unit, snapshot.unit_count
    there = "holds no video"
    if first < count:
        first_s, last_s = snapshot.first_pts_s[first], snapshot.last_pts_s[-1]
        there = f"has video from {first_s:g} s to {last_s:g} s"
    raise RequestError(
        Reason.INVALID_REQUEST,
        f"the span from {span[0]:g} s to {span[1]:g} s holds nothing, and never will: session "
        f"{session_id!r} is finished and {there}",
        field="span",
        start_s=span[0],
        end_s=span[1],
        session_id=session_id,
    )
