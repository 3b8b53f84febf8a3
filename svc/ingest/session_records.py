"""A session as the service sees it, and changes of the record that the store keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from kvstore.pins import Span
from kvstore.session import SessionRecord
from svc.engine.adapters.base import USUAL_SHAPE
from svc.ingest.identity import SessionSettings
from svc.ingest.keeping import KeepingRules
from svc.rpc.errors import Reason, RequestError

_SETTING_NAMES = frozenset(SessionSettings.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session, without what is in it."""

    session_id: str
    display_name: str
    state: Literal["live", "finished"]
    created_unix_s: float
    settings: SessionSettings
    model: str
    """Name and digest of the model that encodes it."""
    keeping: KeepingRules
    """What was said for it of what is kept."""
    pinned_spans: tuple[Span, ...]


def ended(record: SessionRecord) -> SessionRecord:
    """Returns the record of a session whose video is over.

    Raises:
        RequestError: SESSION_FINISHED: it was over before.
    """
    if record.state == "finished":
        raise finished_error(record.session_id)
    return replace(record, state="finished")


def with_settings(record: SessionRecord, changes: Mapping[str, Any]) -> SessionRecord:
    """Returns a record with other values for some of the service's settings."""
    return replace(record, settings={**record.settings, **changes})


def check_agrees(
    existing: SessionRecord, *, settings: Mapping[str, float | str], keeping: KeepingRules
) -> None:
    """Raise unless a session that exists is as was asked for; what was not said fits all.

    Raises:
        RequestError: SESSION_EXISTS, with the first field that differs.
    """
    for name, given in settings.items():
        stored = existing.settings.get(name)
        if given and given != stored:
            raise _exists(existing, name, stored, given)
    kept = KeepingRules.of_record(existing.settings)
    differing = kept.differing(keeping)
    if differing is not None:
        had = getattr(kept, differing) or "the server's default"
        given = getattr(keeping, differing)
        raise _exists(existing, differing, had, given, "; an update of the session changes it")


def _exists(
    existing: SessionRecord, field: str, stored: object, given: object, hint: str = ""
) -> RequestError:
    return RequestError(
        Reason.SESSION_EXISTS,
        f"session {existing.session_id!r} exists with {field} {stored}, got {given}{hint}",
        session_id=existing.session_id,
        field=field,
        stored=stored,
        given=given,
    )


def finished_error(session_id: str) -> RequestError:
    """Returns the refusal of video for a session that is over."""
    return RequestError(
        Reason.SESSION_FINISHED,
        f"session {session_id!r} is finished and takes no more video",
        session_id=session_id,
    )


def session_of(record: SessionRecord) -> Session:
    """Returns the session that a record describes."""
    # Older sessions do not say: of the first two the store refuses them by their format, and for
    # the last they kept what the next unit sees.
    missing = {
        "kv_encoding": "model",
        "reduction": "none",
        "frame_width": USUAL_SHAPE.frame_width,
        "frame_height": USUAL_SHAPE.frame_height,
        "unit_tokens": USUAL_SHAPE.unit_tokens,
        "keep_tokens": record.settings["window_tokens"],
    }
    stored = {**missing, **record.settings}
    return Session(
        session_id=record.session_id,
        display_name=stored["display_name"],
        state=record.state,
        created_unix_s=record.created_unix_s,
        settings=SessionSettings(**{name: stored[name] for name in _SETTING_NAMES}),
        model=f"{stored['model']} {record.identity['model']}",
        keeping=KeepingRules.of_record(stored),
        pinned_spans=record.pinned_spans,
    )
