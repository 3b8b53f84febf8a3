"""What the commands of `lookback store` share: the folder they are given, and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.failures import CommandError

if TYPE_CHECKING:
    from kvstore.limits import BlockLimits
    from svc.config import Settings

FolderArgument = Annotated[
    Path,
    typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Folder of the service."),
]
SessionsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SESSION]...", help="Only these; without one, all.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

Progress = Callable[[int, int], None]
"""Called with (bytes done so far, bytes in all)."""


def require_store(folder: Path) -> None:
    """Raises CommandError when the folder is not one of the service."""
    from kvstore.paths import sessions_folder

    if not sessions_folder(folder).is_dir():
        raise CommandError("STORE_NOT_FOUND", f"{folder} holds no memory of Lookback")


def chosen_sessions(folder: Path, sessions: list[str] | None) -> list[str]:
    """Returns the names of the sessions that are meant: those that were given, or all.

    Raises:
        CommandError: the folder is not one of the service, or one of them is not there.
    """
    from kvstore.paths import stored_session_names

    require_store(folder)
    names = stored_session_names(folder)
    for session in sessions or []:
        if session not in names:
            raise CommandError("SESSION_NOT_FOUND", f"session {session!r} does not exist")
    return list(dict.fromkeys(sessions)) if sessions else names


def disk_limits(settings: Settings) -> BlockLimits:
    """Returns what a command may take of the disk: what the ingest process may."""
    from kvstore.limits import BlockLimits
    from svc.ingest.budget import disk_budget

    return BlockLimits(min_free_bytes=settings.min_free_bytes, budget=disk_budget(settings))


@contextmanager
def byte_progress(label: str) -> Iterator[Progress]:
    """Shows a bar on standard error while the block runs, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    # What a command finds goes above the bar, or to the file to which it may be going.
    with Bar(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def session_progress(label: str, count: int) -> Iterator[Callable[[str], None]]:
    """Shows which of `count` sessions a command is at, as `byte_progress` does.

    What it yields is called with the name of each session as its turn comes.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(label, total=count)
        begun: list[str] = []

        def begin(name: str) -> None:
            bar.update(task, description=f"{label} {name}", completed=len(begun))
            begun.append(name)

        yield begin


def mib(byte_count: float) -> str:
    """Returns a count of bytes as people read it: "1,234.5 MiB"."""
    return f"{byte_count / 2**20:,.1f} MiB"
