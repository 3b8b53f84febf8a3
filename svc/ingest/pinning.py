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
from svc.ingest.session_records import Session
from svc.ingest.sessions import Sessions
from svc.rpc.errors import Reason, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """A span that was pinned."""

    session: Session
    thinned_unit_count: int
    """Units of it that were thinned before."""


def pin_span(root: Path, sessions: Sessions, session_id: str, span: Span) -> Pinned:
    """Pins a span, of which nothing may have been dropped. No writer may be dropping meanwhile.

    Raises:
        RequestError: SPAN_DROPPED.
        KVStoreError: there is no such session, it is damaged, or the span cannot be pinned.
    """
    check_span(span)

    def add(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        # While the record is held: a sweep that drops holds it too.
        _check_not_dropped(session_id, _snapshot(root, session_id), span)
        return pin(spans, span)

    session = sessions.change_pins(session_id, add)
    snapshot = _snapshot(root, session_id)
    whole = spans_to_keep([span], load_session(root, session_id).unit_period_s)
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


def _check_not_dropped(session_id: str, snapshot: Snapshot, span: Span) -> None:
    first = snapshot.first_unit
    if first == 0 or first == snapshot.unit_count:
        return
    first_pts_s = float(snapshot.first_pts_s[first])
    if span[0] < first_pts_s:
        raise RequestError(
            Reason.SPAN_DROPPED,
            f"session {session_id!r} remembers from {first_pts_s:g} s on; what of the span from "
            f"{span[0]:g} s lies before was dropped and cannot be pinned any more",
            session_id=session_id,
            start_s=span[0],
            first_pts_s=first_pts_s,
        )
