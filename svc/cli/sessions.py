"""`lookback sessions`: what the service remembers."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.failures import CommandError
from svc.cli.flags import naming
from svc.cli.keeping import (
    KEEPING_FLAGS,
    BudgetOption,
    OnFullOption,
    RetainOption,
    WhenFull,
    keeping_rules,
    on_full_of,
)
from svc.cli.remote import (
    Endpoints,
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)
from svc.cli.session_view import facts, print_table, session_json, span_text
from svc.cli.text import printable
from svc.cli.times import parse_time_s

if TYPE_CHECKING:
    from svc.client import KeepingRules, Pinned, Session, SessionSettings

app = typer.Typer(
    no_args_is_help=True, help="Makes, lists, shows, changes, finishes and deletes sessions."
)

_JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SessionArgument = Annotated[str, typer.Argument(help="Name of the session.", metavar="SESSION")]
_StartArgument = Annotated[
    float, typer.Argument(parser=parse_time_s, help="Start of the span.", metavar="START")
]
_EndArgument = Annotated[
    float, typer.Argument(parser=parse_time_s, help="End of the span, exclusive.", metavar="END")
]
_FLAGS = {"sample_fps": "--fps", "display_name": "--name", **KEEPING_FLAGS}
"""Options by the fields that they set."""


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
    for name, value in facts(found).items():
        sys.stdout.write(f"{name:<12} {printable(value)}\n")


@app.command()
def create(
    context: typer.Context,
    session: _SessionArgument,
    name: Annotated[str, typer.Option("--name", help="Text for people.")] = "",
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Frames that are kept per second of video; cannot change. ",
            show_default="the server's",
        ),
    ] = None,
    budget: BudgetOption = None,
    on_full: OnFullOption = None,
    retain: RetainOption = None,
    as_json: _JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Makes an empty session, with rules of its own for what is kept of it."""
    from svc.client import SessionSettings

    where = endpoints(context, server, ingest_address, qa_address)
    settings = SessionSettings(sample_fps=fps or 0.0)
    rules = keeping_rules(budget, on_full, retain)
    with naming(_FLAGS):
        made = asyncio.run(_create(where, session, name, settings, rules))
    _tell(made, as_json, f"made {session}")


@app.command()
def update(
    context: typer.Context,
    session: _SessionArgument,
    name: Annotated[str | None, typer.Option("--name", help="Text for people.")] = None,
    budget: BudgetOption = None,
    on_full: OnFullOption = None,
    retain: RetainOption = None,
    as_json: _JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Changes a session's name, or what is kept of it.

    A push that is open goes on under the rules that it was opened with.
    """
    if name is None and budget is None and on_full is None and retain is None:
        raise typer.BadParameter(
            "say what is to change: --name, --budget, --on-full or --retain", param_hint="update"
        )
    where = endpoints(context, server, ingest_address, qa_address)
    with naming(_FLAGS):
        changed = asyncio.run(_update(where, session, name, budget, on_full, retain))
    _tell(changed, as_json, f"changed {session}")


@app.command()
def pin(
    context: typer.Context,
    session: _SessionArgument,
    start: _StartArgument,
    end: _EndArgument,
    as_json: _JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Keeps a span of a session's time: nothing of it is thinned, dropped or aged out.

    Times are seconds, mm:ss or h:mm:ss; the span may lie where no video has come yet.
    """
    pinned = asyncio.run(
        _pin(endpoints(context, server, ingest_address, qa_address), session, start, end)
    )
    if as_json:
        fields = session_json(pinned.session)
        _print_json({**fields, "thinned_unit_count": pinned.thinned_unit_count})
        return
    sys.stdout.write(f"pinned {span_text(start, end)} of {session}\n")
    if pinned.thinned_unit_count:
        sys.stderr.write(
            f"note: {pinned.thinned_unit_count} units of it had been thinned before; what is left "
            "of them stays\n"
        )


@app.command()
def unpin(
    context: typer.Context,
    session: _SessionArgument,
    start: _StartArgument,
    end: _EndArgument,
    as_json: _JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Lets a span of a session's time go again: the session's rules then hold for it too."""
    changed = asyncio.run(
        _unpin(endpoints(context, server, ingest_address, qa_address), session, start, end)
    )
    _tell(changed, as_json, f"unpinned {span_text(start, end)} of {session}")


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
            f"finished {session}: {span_text(stats.first_pts_s, stats.last_durable_pts_s)}, "
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


async def _create(
    where: Endpoints, session: str, name: str, settings: SessionSettings, rules: KeepingRules
) -> Session:
    async with where.client() as client:
        return await client.create_session(
            session, display_name=name, settings=settings, keeping=rules
        )


async def _update(
    where: Endpoints,
    session: str,
    name: str | None,
    budget: int | None,
    on_full: WhenFull | None,
    retain: float | None,
) -> Session:
    async with where.client() as client:
        return await client.update_session(
            session,
            display_name=name,
            session_budget_bytes=budget,
            on_full=on_full_of(on_full),
            retain_s=retain,
        )


async def _pin(where: Endpoints, session: str, start_s: float, end_s: float) -> Pinned:
    async with where.client() as client:
        return await client.pin_span(session, start_s, end_s)


async def _unpin(where: Endpoints, session: str, start_s: float, end_s: float) -> Session:
    async with where.client() as client:
        return await client.unpin_span(session, start_s, end_s)


def _tell(session: Session, as_json: bool, text: str) -> None:
    if as_json:
        _print_json(session_json(session))
    else:
        sys.stdout.write(f"{text}\n")


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
