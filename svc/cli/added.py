"""Commands that other packages add: entry points of the group `lookback.commands`.

The command line must not import them (evaluation stands above the service, and needs more
packages), so one is found by its name when it is called, takes the arguments that are left, and
returns an exit status.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import typer

from svc.cli.failures import CommandError

_GROUP = "lookback.commands"
CONTEXT_SETTINGS: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],  # its own help is to be shown
}


def evaluate(context: typer.Context) -> None:
    """Measure accuracy through the service, with curves and intervals: see `lookback eval -h`."""
    status = find("eval")(context.args)
    if status:
        raise typer.Exit(status)


def find(name: str) -> Callable[[list[str]], int]:
    """Return the command of this name.

    Raises:
        CommandError: EXTRA_MISSING: it, or a package that it needs, is not installed.
    """
    points = metadata.entry_points(group=_GROUP, name=name)
    if not points:
        raise CommandError(
            "EXTRA_MISSING",
            f"`lookback {name}` is not installed: pip install 'lookback[{name}]'",
        )
    try:
        command: Callable[[list[str]], int] = next(iter(points)).load()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] in ("svc", "kvstore", "retrieval"):
            raise
        raise CommandError(
            "EXTRA_MISSING",
            f"`lookback {name}` needs {missing}: pip install 'lookback[{name}]'",
        ) from error
    return command
