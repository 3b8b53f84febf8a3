"""`lookback sessions create` and `update`: a session's name, and what is kept of it."""

from __future__ import annotations

import asyncio
import datetime
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.ageing import loses_most, what_ages
from svc.cli.amounts import format_bytes, format_duration
from svc.cli.failures import CommandError
from svc.cli.flags import naming
from svc.cli.keeping import (
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
from svc.cli.session_options import (
    FLAGS,
    FpsOption,
    FrameSizeOption,
    JsonOption,
    NameOption,
    ReductionOption,
    SessionArgument,
    UnitTokensOption,
    parse_frame_size,
    tell,
)

if TYPE_CHECKING:
    from svc.client import KeepingRules, Session, SessionSettings


def create(
    context: typer.Context,
    session: SessionArgument,
    name: NameOption = None,
    fps: FpsOption = None,
    reduction: ReductionOption = None,
    unit_tokens: UnitTokensOption = None,
    frame_size: FrameSizeOption = None,
    budget: BudgetOption = None,
    on_full: OnFullOption = None,
    retain: RetainOption = None,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Makes an empty session, with rules of its own for what is kept of it."""
    from svc.client import SessionSettings

    where = endpoints(context, server, ingest_address, qa_address)
    frame_width, frame_height = parse_frame_size(frame_size)
    settings = SessionSettings(
        sample_fps=fps or 0.0,
        reduction=reduction or "",
        frame_width=frame_width,
        frame_height=frame_height,
        unit_token_count=unit_tokens or 0,
    )
    rules = keeping_rules(budget, on_full, retain)
    with naming(FLAGS):
        made = asyncio.run(_create(where, session, name or "", settings, rules))
    tell(made, as_json, f"made {session}")


def update(
    context: typer.Context,
    session: SessionArgument,
    name: NameOption = None,
    budget: BudgetOption = None,
    on_full: OnFullOption = None,
    retain: RetainOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask, though most of it may go.")
    ] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Changes a session's name, or what is kept of it.

    A push that is open goes on under the rules that it was opened with. Where --retain may cost
    most of the session soon, it asks first.
    """
    if name is None and budget is None and on_full is None and retain is None:
        raise typer.BadParameter(
            "say what is to change: --name, --budget, --on-full or --retain", param_hint="update"
        )
    where = endpoints(context, server, ingest_address, qa_address)
    if retain and not yes:
        _ask(asyncio.run(_get(where, session)), retain)
    with naming(FLAGS):
        changed = asyncio.run(_update(where, session, name, budget, on_full, retain))
    tell(changed, as_json, f"changed {session}")
    notes = [over_budget(changed)]
    if retain is not None:
        rules = changed.keeping_in_force
        in_force_s = 0.0 if rules is None else rules.retain_s
        notes.append(what_ages(changed, in_force_s, datetime.datetime.now(datetime.UTC)))
    for note in filter(None, notes):
        sys.stderr.write(f"note: {note}\n")


def _ask(session: Session, retain_s: float) -> None:
    """Asks whether a session is to be given an age that may soon cost most of it.

    Raises:
        typer.BadParameter: nobody can be asked.
        CommandError: the answer is no.
    """
    now = datetime.datetime.now(datetime.UTC)
    if not loses_most(session, retain_s, now):
        return
    what = what_ages(session, retain_s, now)
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"{what}. Most of it may go soon; say --yes if that is meant", param_hint="--retain"
        )
    question = f"{what}.\nForget what is older than {format_duration(retain_s)}?"
    if not typer.confirm(question, err=True):
        raise CommandError("NOT_CONFIRMED", "nothing was changed")


def over_budget(session: Session) -> str:
    """Says what becomes of a session that takes more than its budget; empty where it does not."""
    from svc.client import OnFull, SessionState

    rules = session.keeping_in_force
    if rules is None or not rules.session_budget_bytes:
        return ""
    if session.stats is None:
        return f"how much {session.session_id} takes cannot be read now"
    used_bytes = session.stats.disk_bytes
    if used_bytes <= rules.session_budget_bytes:
        return ""
    over = (
        f"{session.session_id} takes {format_bytes(used_bytes)}, more than its budget of "
        f"{format_bytes(rules.session_budget_bytes)}; "
    )
    finished = session.state is SessionState.FINISHED
    if rules.on_full is OnFull.DROP_OLDEST:
        return (
            f"{over}unless a push is open, its oldest segments go within a minute, up to what is "
            "pinned. The last one stays, and what was pushed without a budget to drop for may be "
            "one segment of up to 512 MiB"
        )
    if finished:
        return (
            f"{over}of a finished session nothing goes under `{rules.on_full.value}`; its oldest "
            "would with --on-full drop_oldest"
        )
    if rules.on_full is OnFull.THIN:
        return f"{over}it is thinned when it is pushed to again"
    return f"{over}nothing of it goes, and what is pushed to it is refused"


async def _create(
    where: Endpoints, session: str, name: str, settings: SessionSettings, rules: KeepingRules
) -> Session:
    async with where.client() as client:
        return await client.create_session(
            session, display_name=name, settings=settings, keeping=rules
        )


async def _get(where: Endpoints, session: str) -> Session:
    async with where.client() as client:
        return await client.get_session(session)


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
