"""What is shown of sessions, for people and for programs."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import TYPE_CHECKING, Any

from svc.cli.amounts import FOREVER, format_bytes, format_duration
from svc.cli.text import printable
from svc.cli.times import format_time

if TYPE_CHECKING:
    from svc.client import PinnedSpan, Session, SessionStats

_LEAST_ID_CHARS = 20
_OTHER_CHARS = 60
"""What the other columns of a list take, a short name among them."""
_PIPE_CHARS = 400
"""No list is so wide: one that goes elsewhere than to a terminal is a line a session."""
_PINS_SHOWN = 20


def session_json(session: Session) -> dict[str, Any]:
    """Returns the object that `--json` prints for a session."""
    fields = dataclasses.asdict(session)
    fields["session"] = fields.pop("session_id")
    fields["state"] = session.state.value
    fields["create_time"] = session.create_time.isoformat()
    on_full, retain_s = session.keeping.on_full, session.keeping.retain_s
    fields["keeping"]["on_full"] = on_full and on_full.value
    # JSON has no infinity.
    fields["keeping"]["retain_s"] = FOREVER if math.isinf(retain_s) else retain_s
    if session.keeping_in_force is not None:
        fields["keeping_in_force"]["on_full"] = session.keeping_in_force.on_full.value
    return fields


def facts(session: Session) -> dict[str, str]:
    """Returns what `show` says of a session, by name."""
    settings = session.settings
    return {
        "session": session.session_id,
        "name": session.display_name,
        "state": session.state.value,
        "created": session.create_time.isoformat(sep=" ", timespec="seconds"),
        **_remembered(session.stats),
        "reduction": settings.reduction,
        "sampled at": f"{settings.sample_fps:g} frames/s",
        "window": f"{settings.window_token_count:,} tokens",
        "model": session.model,
        "stored as": session.kv_encoding,
        **_keeping(session),
        **_pinned(session.pinned_spans),
    }


def _remembered(stats: SessionStats | None) -> dict[str, str]:
    if stats is None:
        return {"memory": "damaged: it cannot be read now"}
    return {
        "visible": f"{span_text(stats.first_pts_s, stats.last_visible_pts_s)}, "
        f"{stats.visible_unit_count} units",
        "durable": f"{span_text(stats.first_pts_s, stats.last_durable_pts_s)}, "
        f"{stats.durable_unit_count} units",
        **_forgotten(stats),
        "tokens": f"{stats.token_count:,}, {1 - stats.drop_fraction:.0%} of what was seen",
        "on disk": f"{stats.disk_bytes / 2**20:,.1f} MiB",
        "gaps": str(stats.gap_count),
    }


def _forgotten(stats: SessionStats) -> dict[str, str]:
    if not stats.dropped_unit_count or stats.first_pts_s is None:
        return {}
    since = format_time(stats.first_pts_s)
    return {"remembers": f"from {since} on; {stats.dropped_unit_count} older units were dropped"}


def span_text(first_s: float | None, last_s: float | None) -> str:
    """Returns a span of time as people read it."""
    if first_s is None or last_s is None:
        return "nothing"
    return f"{format_time(first_s)} - {format_time(last_s)}"


def _keeping(session: Session) -> dict[str, str]:
    """Returns the rules that hold, and whose each is."""
    said, rules = session.keeping, session.keeping_in_force
    if rules is None:
        return {}
    budget, retain_s = rules.session_budget_bytes, rules.retain_s
    return {
        "budget": _whose(format_bytes(budget) if budget else "none", said.session_budget_bytes),
        "when full": _whose(rules.on_full.value, said.on_full),
        "kept": _whose(
            format_duration(retain_s) if 0 < retain_s < math.inf else "for ever", said.retain_s
        ),
    }


def _whose(rule: str, said: object) -> str:
    return f"{rule}, as said for this session" if said else f"{rule}, as for all"


def _pinned(spans: tuple[PinnedSpan, ...]) -> dict[str, str]:
    if not spans:
        return {}
    shown = ", ".join(span_text(span.start_s, span.end_s) for span in spans[:_PINS_SHOWN])
    more = len(spans) - _PINS_SHOWN
    return {"pinned": shown + (f" and {more} more" if more > 0 else "")}


def _amounts(stats: SessionStats | None) -> list[str]:
    """Returns what a list says of the memory: video, units, on disk."""
    if stats is None:
        return ["damaged", "?", "?"]
    return [
        span_text(stats.first_pts_s, stats.last_visible_pts_s),
        str(stats.visible_unit_count),
        f"{stats.disk_bytes / 2**20:,.1f} MiB",
    ]


def print_table(sessions: list[Session]) -> None:
    """Prints a line for each session, to be read at 80 columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sessions:
        sys.stdout.write("no sessions\n")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    # Names go on in another line where there is no room: other commands take them whole.
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_CHARS)
    longest = max(len("session"), *(len(session.session_id) for session in sessions))
    room = max(_LEAST_ID_CHARS, console.width - _OTHER_CHARS)
    table.add_column("session", overflow="fold", width=min(longest, room))
    table.add_column("state", no_wrap=True)
    for heading in ("video", "units", "on disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    if any(session.display_name for session in sessions):
        table.add_column("name", overflow="fold")
    for session in sessions:
        cells = [
            session.session_id,
            session.state.value,
            *_amounts(session.stats),
            Text(printable(session.display_name)),
        ]
        table.add_row(*cells[: len(table.columns)])
    console.print(table)
