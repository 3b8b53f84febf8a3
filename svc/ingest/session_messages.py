"""Messages of SessionService to what the process works with, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from google.protobuf import timestamp_pb2

from kvstore.budget import OnFull
from kvstore.pins import Span
from lookback.v1 import session_pb2
from svc.config import Settings
from svc.ingest.keeping import KEEPING_FIELDS, KeepingRules
from svc.ingest.session_records import Session
from svc.ingest.stats import SessionStats
from svc.rpc.errors import Reason, RequestError

MAX_UNITS_OF_PAGE = 10_000
DEFAULT_UNITS_OF_PAGE = 1000

_NANOS = 1_000_000_000
_STATES = {
    "live": session_pb2.Session.STATE_LIVE,
    "finished": session_pb2.Session.STATE_FINISHED,
}
_ON_FULL: dict[OnFull, session_pb2.KeepingRules.OnFull.ValueType] = {
    "refuse": session_pb2.KeepingRules.ON_FULL_REFUSE,
    "drop_oldest": session_pb2.KeepingRules.ON_FULL_DROP_OLDEST,
    "thin": session_pb2.KeepingRules.ON_FULL_THIN,
}
_ON_FULL_OF_NUMBER = {int(number): name for name, number in _ON_FULL.items()}
_KEEPING_PATHS = tuple(f"keeping.{name}" for name in KEEPING_FIELDS)


class Page(TypedDict):
    """Arguments of `svc.ingest.timeline.units_between`."""

    start_s: float
    end_s: float
    from_unit: int
    count: int


def invalid(field: str, given: object, allowed: str) -> RequestError:
    """Returns the refusal of a field."""
    return RequestError(
        Reason.INVALID_REQUEST,
        f"{field} must be {allowed}, got {given}",
        field=field,
        given=given,
        allowed=allowed,
    )


def read_keeping(message: session_pb2.KeepingRules) -> KeepingRules:
    """Returns the rules of a message, whose ranges are not looked at.

    Raises:
        RequestError: INVALID_REQUEST: `on_full` is one that this server does not know.
    """
    number = int(message.on_full)
    if number and number not in _ON_FULL_OF_NUMBER:
        raise invalid("keeping.on_full", number, f"one of {', '.join(_ON_FULL)}")
    return KeepingRules(
        session_budget_bytes=message.session_budget_bytes,
        on_full=_ON_FULL_OF_NUMBER[number] if number else None,
        retain_s=message.retain_s,
    )


def read_mask(paths: Sequence[str]) -> tuple[bool, tuple[str, ...]]:
    """Returns whether a mask names the display name, and which fields of the rules it names.

    Raises:
        RequestError: INVALID_REQUEST: it names nothing, or what cannot change.
    """
    allowed = ("display_name", "keeping", *_KEEPING_PATHS)
    wrong = [path for path in paths if path not in allowed]
    if wrong or not paths:
        raise invalid("update_mask", ", ".join(wrong) or "nothing", f"of {', '.join(allowed)}")
    fields = KEEPING_FIELDS
    if "keeping" not in paths:
        fields = tuple(name for name in KEEPING_FIELDS if f"keeping.{name}" in paths)
    return "display_name" in paths, fields


def read_span(message: session_pb2.PinnedSpan) -> Span:
    """Returns the span of a message, whatever its times."""
    return (message.start_s, message.end_s)


def read_page(message: session_pb2.ListUnitsRequest) -> Page:
    """Returns which units are asked for.

    Raises:
        RequestError: INVALID_REQUEST: a time is NaN, a size negative, or the token none of ours.
    """
    times = {"start_s": -math.inf, "end_s": math.inf}
    for field in times:
        if message.HasField(field):  # type: ignore[arg-type]  # both are optional fields
            times[field] = getattr(message, field)
        if math.isnan(times[field]):
            raise invalid(field, "nan", "a time in seconds")
    if message.page_size < 0:
        raise invalid("page_size", message.page_size, f"in [0, {MAX_UNITS_OF_PAGE}]")
    if not (message.page_token or "0").isdecimal():
        allowed = "a next_page_token of this service"
        raise invalid("page_token", repr(message.page_token), allowed)
    return Page(
        start_s=times["start_s"],
        end_s=times["end_s"],
        from_unit=int(message.page_token or 0),
        count=min(message.page_size or DEFAULT_UNITS_OF_PAGE, MAX_UNITS_OF_PAGE),
    )


def session_message(
    session: Session, stats: SessionStats | None, settings: Settings
) -> session_pb2.Session:
    """Returns the message for a session under the server's settings; `stats` may be unknown."""
    created = timestamp_pb2.Timestamp()
    created.FromNanoseconds(int(session.created_unix_s * _NANOS))
    return session_pb2.Session(
        session_id=session.session_id,
        display_name=session.display_name,
        state=_STATES[session.state],
        create_time=created,
        settings=session_pb2.SessionSettings(
            sample_fps=session.settings.sample_fps,
            window_token_count=session.settings.window_tokens,
            reduction=session.settings.reduction,
            frame_width=session.settings.frame_width,
            frame_height=session.settings.frame_height,
            unit_token_count=session.settings.unit_tokens,
        ),
        stats=None if stats is None else _stats_message(stats),
        model=session.model,
        kv_encoding=session.settings.kv_encoding,
        keeping=_keeping_message(session.keeping),
        keeping_in_force=_in_force_message(session.keeping, settings),
        pinned_spans=[
            session_pb2.PinnedSpan(start_s=start_s, end_s=end_s)
            for start_s, end_s in session.pinned_spans
        ],
    )


def _stats_message(stats: SessionStats) -> session_pb2.SessionStats:
    return session_pb2.SessionStats(
        visible_unit_count=stats.visible_unit_count,
        durable_unit_count=stats.durable_unit_count,
        first_pts_s=stats.first_pts_s,
        last_visible_pts_s=stats.last_visible_pts_s,
        last_durable_pts_s=stats.last_durable_pts_s,
        token_count=stats.token_count,
        disk_bytes=stats.disk_bytes,
        gap_count=stats.gap_count,
        dropped_unit_count=stats.dropped_unit_count,
        drop_fraction=stats.drop_fraction,
    )


def _keeping_message(rules: KeepingRules) -> session_pb2.KeepingRules:
    return session_pb2.KeepingRules(
        session_budget_bytes=rules.session_budget_bytes,
        on_full=_ON_FULL[rules.on_full]
        if rules.on_full
        else session_pb2.KeepingRules.ON_FULL_UNSPECIFIED,
        retain_s=rules.retain_s,
    )


def _in_force_message(rules: KeepingRules, settings: Settings) -> session_pb2.KeepingRules:
    in_force = rules.in_force(settings)
    return session_pb2.KeepingRules(
        session_budget_bytes=in_force.budget.session_bytes,
        on_full=_ON_FULL[in_force.budget.on_full],
        retain_s=in_force.retain_s,
    )
