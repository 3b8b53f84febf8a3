"""`lookback push`: a file or standard input, pushed until the service has it all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.failures import EXIT_INTERRUPTED, CommandError
from svc.cli.flags import naming
from svc.cli.keeping import (
    KEEPING_FLAGS,
    BudgetOption,
    OnFullOption,
    RetainOption,
    keeping_rules,
)
from svc.cli.remote import (
    Endpoints,
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)
from svc.cli.session_options import FpsOption, ReductionOption, UnitTokensOption
from svc.cli.times import format_time

if TYPE_CHECKING:
    from svc.client import KeepingRules, LookbackClient, SessionSettings, SourceLabel
    from svc.video.sources import Source

_STDIN = "-"
_FLAGS = {
    "sample_fps": "--fps",
    "reduction": "--reduction",
    "unit_tokens": "--unit-tokens",
    "speed": "--speed",
    "give_up_after_s": "--give-up-after",
    **KEEPING_FLAGS,
}
"""Options by the fields and arguments that they set."""


def push(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A video file, or - for a container's bytes from standard input "
            "(MPEG-TS, Matroska, WebM, fragmented MP4).",
        ),
    ],
    session: Annotated[str, typer.Option(help="Session that it becomes.", metavar="NAME")],
    speed: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds of video per second; 1: as a camera would; 0: as fast as it is taken.",
        ),
    ] = 0.0,
    fps: FpsOption = None,
    reduction: ReductionOption = None,
    unit_tokens: UnitTokensOption = None,
    create: Annotated[
        bool,
        typer.Option("--create/--no-create", help="Create the session if it is not there yet."),
    ] = True,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish/--no-finish",
            help="End the session's video at the end of the source, or leave it live.",
        ),
    ] = True,
    join: Annotated[
        bool,
        typer.Option(
            "--join",
            "--join",
            help="Add this file to a session that holds video of another one. Its times must begin "
            "after those that the session has.",
        ),
    ] = False,
    budget: BudgetOption = None,
    on_full: OnFullOption = None,
    retain: RetainOption = None,
    give_up_after_s: Annotated[
        float,
        typer.Option(
            "--give-up-after",
            min=0.0,
            metavar="SECONDS",
            help="How long to try to go on when the service is away.",
        ),
    ] = 300.0,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Pushes a video into a session.

    Goes on by itself when the connection is lost or the service restarts.

    Ctrl-C ends the push and leaves the session live; the same command goes on with it.
    """
    fixed = (("--fps", fps), ("--reduction", reduction), ("--unit-tokens", unit_tokens))
    for flag, given in fixed:
        if given is not None and not create:
            raise typer.BadParameter(
                "is fixed when the session is created; leave it out with --no-create",
                param_hint=flag,
            )
    rules = keeping_rules(budget, on_full, retain)
    for flag, value in (("--budget", budget), ("--on-full", on_full), ("--retain", retain)):
        if value is not None and not create:
            raise typer.BadParameter(
                "is for a session that is created; `lookback sessions update` changes one",
                param_hint=flag,
            )
    if source == _STDIN and speed > 0:
        raise typer.BadParameter(
            "standard input goes at its own pace; leave it out", param_hint="--speed"
        )
    if source == _STDIN and join:
        raise typer.BadParameter(
            "standard input is not told from other sources; leave it out", param_hint="--join"
        )
    from svc.client import SessionSettings

    where = endpoints(context, server, ingest_address, qa_address)
    opened, label = _open(source)
    settings = SessionSettings(
        sample_fps=fps or 0.0,
        reduction=reduction or "",
        frame_width=opened.description.width,
        frame_height=opened.description.height,
        unit_token_count=unit_tokens or 0,
    )
    pushing = _push(
        where,
        opened,
        label=label,
        name=source,
        session=session,
        speed=speed,
        settings=settings,
        rules=rules,
        create=create,
        join=join,
        finish=finish,
        give_up_after_s=give_up_after_s,
    )
    with naming(_FLAGS):
        status = asyncio.run(pushing)
    raise typer.Exit(status)


def _open(source: str) -> tuple[Source, SourceLabel | None]:
    """Returns the source, and what tells it from others: nothing does, but of files."""
    from svc.client import label_of_file
    from svc.video.sources import open_source

    if source != _STDIN:
        if Path(source).is_dir():
            raise CommandError("SOURCE_OPEN", f"cannot read {source!r}: it is a folder")
        opened = open_source(source)
        return opened, label_of_file(source) if Path(source).is_file() else None
    if sys.stdin.isatty():
        raise CommandError("SOURCE_OPEN", "standard input is a terminal: pipe a video into it")
    # Unbuffered: a buffered reader that is read on a thread cannot be left at exit.
    return open_source(source, stdin=os.fdopen(0, "rb", buffering=0, closefd=False)), None


async def _push(
    where: Endpoints,
    source: Source,
    *,
    label: SourceLabel | None,
    name: str,
    session: str,
    speed: float,
    settings: SessionSettings,
    rules: KeepingRules,
    create: bool,
    join: bool,
    finish: bool,
    give_up_after_s: float,
) -> int:
    from svc.cli.push_view import PushView
    from svc.client import PushFinished, PushLeft
    from svc.client.waiting import unless

    interrupted = _Interrupts()
    ended: PushFinished | PushLeft | None = None
    async with where.client() as client:
        if create:  # which waits for a service that is still loading
            await unless(interrupted.stop, _create(client, session, settings, rules))
        if interrupted.stop.is_set():
            return EXIT_INTERRUPTED
        events = client.push(
            session,
            source,
            label=label,
            join=join,
            speed=speed,
            finish=finish,
            stop=interrupted.stop,
            give_up_after_s=give_up_after_s,
        )
        try:
            with PushView(session, source.description.duration_s) as view:
                async with contextlib.aclosing(events):
                    async for event in events:
                        view.show(event)
                        if isinstance(event, PushFinished | PushLeft):
                            ended = event
        except Exception:
            await _tell_live(client, session, name)
            raise
    if ended is None:
        raise AssertionError("a push ends with PushFinished or PushLeft, or raises")
    sys.stdout.write(view.summary(ended) + "\n")
    if not interrupted.stop.is_set():
        return 0
    if isinstance(ended, PushLeft) and name != _STDIN:
        sys.stderr.write(f"interrupted; the session stays live. To go on: {_this_command()}\n")
    return EXIT_INTERRUPTED


async def _tell_live(client: LookbackClient, session: str, name: str) -> None:
    """After a push that failed: says that what is stored of it is there, and how to go on."""
    from svc.client import LookbackError, SessionState

    try:
        found = await client.get_session(session)
    except LookbackError:
        return  # nobody can say: why it failed says enough
    if found.state is not SessionState.LIVE:
        return
    if found.stats is None:
        stored = "what is stored of it cannot be read now"
    elif (stored_s := found.stats.last_durable_pts_s) is None:
        stored = "nothing is stored yet"
    else:
        stored = f"stored up to {format_time(stored_s)}"
    go_on = "" if name == _STDIN else f" To go on once that is mended: {_this_command()}."
    sys.stderr.write(
        f"the session {session} is live, {stored}.{go_on} "
        f"To end it: lookback sessions finish {session}\n"
    )


def _this_command() -> str:
    return shlex.join(["lookback", *sys.argv[1:]])


async def _create(
    client: LookbackClient, session: str, settings: SessionSettings, rules: KeepingRules
) -> None:
    from svc.client import KeepingRules, LookbackError, SessionSettings

    if settings != SessionSettings() or rules != KeepingRules():
        await client.create_session(
            session,
            settings=settings,
            keeping=rules,
            exist_ok=True,
        )
        return
    # No wish as to its settings: whatever an existing session has is right.
    try:
        await client.get_session(session)
    except LookbackError as error:
        if error.reason != "SESSION_NOT_FOUND":
            raise
        await client.create_session(session, exist_ok=True)


class _Interrupts:
    """The first Ctrl-C or SIGTERM asks for a clean end; the next breaks the push off."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)

    def _interrupt(self) -> None:
        if self.stop.is_set() and self._task is not None:
            self._task.cancel()
            return
        sys.stderr.write("ending the push; Ctrl-C again to break it off\n")
        self.stop.set()
