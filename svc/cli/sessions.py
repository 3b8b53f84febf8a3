"""`lookback sessions`: what the service remembers."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli import session_pins, session_rules, session_timeline
from svc.cli.failures import CommandError
from svc.cli.remote import (
    Endpoints,
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)
from svc.cli.session_options import JsonOption, SessionArgument, print_json
from svc.cli.session_view import facts, print_table, session_json, span_text
from svc.cli.text import printable

if TYPE_CHECKING:
    from svc.client import Session


def list_(
    context: typer.Context,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Lists all sessions, in order of their names."""
    found = asyncio.run(_list(endpoints(context, server, ingest_address, qa_address)))
    if as_json:
        print_json([session_json(session) for session in found])
    else:
        print_table(found)


def show(
    context: typer.Context,
    session: SessionArgument,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Shows one session."""
    found = asyncio.run(_get(endpoints(context, server, ingest_address, qa_address), session))
    if as_json:
        print_json(session_json(found))
        return
    for name, value in facts(found).items():
        sys.stdout.write(f"{name:<12} {printable(value)}\n")


def finish(
    context: typer.Context,
    session: SessionArgument,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Ends the video of a live session to which nobody pushes.

    It takes no more then; questions are still answered.
    """
    found = asyncio.run(_finish(endpoints(context, server, ingest_address, qa_address), session))
    if as_json:
        print_json(session_json(found))
    else:
        stats = found.stats
        held = (
            "what it holds cannot be read"
            if stats is None
            else f"{span_text(stats.first_pts_s, stats.last_durable_pts_s)}, "
            f"{stats.durable_unit_count} units"
        )
        sys.stdout.write(f"finished {session}: {held}\n")


def delete(
    context: typer.Context,
    session: SessionArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Deletes a session with everything remembered of it."""
    where = endpoints(context, server, ingest_address, qa_address)
    if not yes:
        asyncio.run(_get(where, session))  # nobody is asked about what is not there
        if not sys.stdin.isatty():
            raise typer.BadParameter("say --yes where nobody can be asked", param_hint="--yes")
        question = f"Delete session {session!r} and everything remembered of it?"
        if not typer.confirm(question, err=True):
            raise CommandError("NOT_CONFIRMED", "nothing was deleted")
    asyncio.run(_delete(where, session))
    if as_json:
        print_json({"deleted": session})
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


app = typer.Typer(
    no_args_is_help=True, help="Makes, lists, shows, changes, finishes and deletes sessions."
)
app.command("list")(list_)
app.command()(show)
app.command()(session_timeline.timeline)
app.command()(session_rules.create)
app.command()(session_rules.update)
app.command(context_settings=session_pins.TIMES_MAY_BE_NEGATIVE)(session_pins.pin)
app.command(context_settings=session_pins.TIMES_MAY_BE_NEGATIVE)(session_pins.unpin)
app.command()(finish)
app.command()(delete)
