"""`lookback sessions pin` and `unpin`: spans of a session's time that are kept."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.failures import CommandError
from svc.cli.remote import (
    Endpoints,
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)
from svc.cli.session_options import JsonOption, SessionArgument, print_json, tell
from svc.cli.session_view import session_json, span_text
from svc.cli.times import format_time, parse_time_s

if TYPE_CHECKING:
    from svc.client import Pinned, Session

TIMES_MAY_BE_NEGATIVE = {"ignore_unknown_options": True}
"""How the commands are to be read: `-5` is a time, as in videos that begin before 0."""

_StartArgument = Annotated[
    float, typer.Argument(parser=parse_time_s, help="Start of the span.", metavar="START")
]
_EndArgument = Annotated[
    float, typer.Argument(parser=parse_time_s, help="End of the span, exclusive.", metavar="END")
]


def pin(
    context: typer.Context,
    session: SessionArgument,
    start: _StartArgument,
    end: _EndArgument,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Keeps a span of a session's time: nothing of it is thinned, dropped or aged out.

    Times are seconds, mm:ss or h:mm:ss; the span may lie where no video has come yet.
    """
    _check_order(start, end)
    pinned = asyncio.run(
        _pin(endpoints(context, server, ingest_address, qa_address), session, start, end)
    )
    if as_json:
        fields = session_json(pinned.session)
        print_json({**fields, "thinned_unit_count": pinned.thinned_unit_count})
        return
    sys.stdout.write(f"pinned {span_text(start, end)} of {session}\n")
    if pinned.thinned_unit_count:
        sys.stderr.write(
            f"note: {pinned.thinned_unit_count} units of it had been thinned before; what is left "
            "of them stays\n"
        )
    note = _beyond(pinned.session, start, end)
    if note:
        sys.stderr.write(f"note: {note}\n")


def unpin(
    context: typer.Context,
    session: SessionArgument,
    start: _StartArgument,
    end: _EndArgument,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Lets a span of a session's time go again: the session's rules then hold for it too."""
    _check_order(start, end)
    changed, was_pinned = asyncio.run(
        _unpin(endpoints(context, server, ingest_address, qa_address), session, start, end)
    )
    span = f"{span_text(start, end)} of {session}"
    tell(changed, as_json, f"unpinned {span}" if was_pinned else f"nothing is pinned in {span}")


def _check_order(start_s: float, end_s: float) -> None:
    if not start_s < end_s:
        raise CommandError(
            "INVALID_REQUEST",
            f"START {format_time(start_s)} must come before END {format_time(end_s)}",
        )


def _beyond(session: Session, start_s: float, end_s: float) -> str:
    """Says what of a pinned span holds no video and never will."""
    from svc.client import SessionState

    stats = session.stats
    if stats is None:
        return "which video there is cannot be read now"
    first_s, last_s = stats.first_pts_s, stats.last_visible_pts_s
    if first_s is None or last_s is None:
        return ""
    if session.state is SessionState.FINISHED and end_s > last_s + 1 / session.settings.sample_fps:
        return f"the video ended at {format_time(last_s)}; nothing comes after it"
    if start_s < first_s and not stats.dropped_unit_count:
        return f"the video began at {format_time(first_s)}; nothing comes before it"
    return ""


async def _pin(where: Endpoints, session: str, start_s: float, end_s: float) -> Pinned:
    async with where.client() as client:
        return await client.pin_span(session, start_s, end_s)


async def _unpin(
    where: Endpoints, session: str, start_s: float, end_s: float
) -> tuple[Session, bool]:
    """Returns the session, and whether something of the span was pinned."""
    async with where.client() as client:
        before = await client.get_session(session)
        was_pinned = any(
            span.start_s < end_s and start_s < span.end_s for span in before.pinned_spans
        )
        return await client.unpin_span(session, start_s, end_s), was_pinned
