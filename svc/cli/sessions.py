"""`lookback sessions`: what the service remembers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svc.cli.failures import CommandError
from svc.cli.remote import (
    Endpoints,
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)
from svc.cli.text import printable
from svc.cli.times import format_time

if TYPE_CHECKING:
    from svc.client import Session, SessionStats

app = typer.Typer(no_args_is_help=True, help="Lists, shows, finishes and deletes sessions.")

_LEAST_ID_CHARS = 20
_OTHER_CHARS = 60
"""What the other columns of a list take, a short name among them."""
_PIPE_CHARS = 400
"""No list is so wide: one that goes elsewhere than to a terminal is a line a session."""

_JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SessionArgument = Annotated[str, typer.Argument(help="Name of the session.", metavar="SESSION")]


@app.command("list")
def list_(
    context: typer.Context,
    as_json: _JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Lists all sessions, in order of their names."""
    found = asyncio.run(_list(endpoints(context, server, ingest_address, qa_address)))
    if as_json:
        _print_json([session_json(session) for session in found])
    else:
        print_table(found)


@app.command()
def show(
    context: typer.Context,
    session: _SessionArgument,
    as_json: _JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Shows one session."""
    found = asyncio.run(_get(endpoints(context, server, ingest_address, qa_address), session))
    if as_json:
        _print_json(session_json(found))
        return
    for name, value in _facts(found).items():
        sys.stdout.write(f"{name:<12} {printable(value)}\n")


@app.command()
def finish(
    context: typer.Context,
    session: _SessionArgument,
    as_json: _JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Ends the video of a live session to which nobody pushes.

    It takes no more then; questions are still answered.
    """
    found = asyncio.run(_finish(endpoints(context, server, ingest_address, qa_address), session))
    if as_json:
        _print_json(session_json(found))
    else:
        stats = found.stats
        sys.stdout.write(
            f"finished {session}: {_span(stats.first_pts_s, stats.last_durable_pts_s)}, "
            f"{stats.durable_unit_count} units\n"
        )


@app.command()
def delete(
    context: typer.Context,
    session: _SessionArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: _JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Deletes a session with everything remembered of it."""
    where = endpoints(context, server, ingest_address, qa_address)
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("say --yes where nobody can be asked", param_hint="--yes")
        question = f"Delete session {session!r} and everything remembered of it?"
        if not typer.confirm(question, err=True):
            raise CommandError("NOT_CONFIRMED", "nothing was deleted")
    asyncio.run(_delete(where, session))
    if as_json:
        _print_json({"deleted": session})
    else:
        sys.stdout.write(f"deleted {session}\n")


async def _list(where: Endpoints) -> list[Session]:
    async with where.client() as client:
        return [session async for session in client.list_sessions()]


async def _get(where: Endpoints, session: str) -> Session:
    async with where.client() as client:
        return await client.get_session(session)


async def _finish(where: Endpoints, session: str) -> Session:
    from svc.client import LookbackError

    async with where.client() as client:
        try:
            return await client.finish_session(session)
        except LookbackError as error:
            if error.reason != "SESSION_BUSY":
                raise
            raise CommandError(
                error.reason, f"{error.message}: end that push first, or let it finish the session"
            ) from error


async def _delete(where: Endpoints, session: str) -> None:
    async with where.client() as client:
        await client.delete_session(session)


def session_json(session: Session) -> dict[str, Any]:
    """Returns the object that `--json` prints for a session."""
    fields = dataclasses.asdict(session)
    fields["session"] = fields.pop("session_id")
    fields["state"] = session.state.value
    fields["create_time"] = session.create_time.isoformat()
    return fields


def _facts(session: Session) -> dict[str, str]:
    stats, settings = session.stats, session.settings
    return {
        "session": session.session_id,
        "name": session.display_name,
        "state": session.state.value,
        "created": session.create_time.isoformat(sep=" ", timespec="seconds"),
        "visible": f"{_span(stats.first_pts_s, stats.last_visible_pts_s)}, "
        f"{stats.visible_unit_count} units",
        "durable": f"{_span(stats.first_pts_s, stats.last_durable_pts_s)}, "
        f"{stats.durable_unit_count} units",
        **_forgotten(stats),
        "tokens": f"{stats.token_count:,}",
        "on disk": f"{stats.disk_bytes / 2**20:,.1f} MiB",
        "gaps": str(stats.gap_count),
        "sampled at": f"{settings.sample_fps:g} frames/s",
        "window": f"{settings.window_token_count:,} tokens",
        "model": session.model,
        "stored as": session.kv_encoding,
    }


def _forgotten(stats: SessionStats) -> dict[str, str]:
    if not stats.dropped_unit_count or stats.first_pts_s is None:
        return {}
    since = format_time(stats.first_pts_s)
    return {"remembers": f"from {since} on; {stats.dropped_unit_count} older units were dropped"}


def _span(first_s: float | None, last_s: float | None) -> str:
    if first_s is None or last_s is None:
        return "nothing"
    return f"{format_time(first_s)} - {format_time(last_s)}"


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


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
        stats = session.stats
        cells = [
            session.session_id,
            session.state.value,
            _span(stats.first_pts_s, stats.last_visible_pts_s),
            str(stats.visible_unit_count),
            f"{stats.disk_bytes / 2**20:,.1f} MiB",
            Text(printable(session.display_name)),
        ]
        table.add_row(*cells[: len(table.columns)])
    console.print(table)
