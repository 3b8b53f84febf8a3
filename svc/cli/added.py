"""Commands that other packages add: entry points of the group `lookback.commands`.

The command line must not import them (evaluation stands above the service, and needs more
packages), so one is found by its name when it is called, takes the arguments that are left, and
returns an exit status.
"""

from __future__ import annotations

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
    _run("eval", context.args)


def _run(name: str, arguments: list[str]) -> None:
    points = metadata.entry_points(group=_GROUP, name=name)
    if not points:
        raise CommandError(
            "EXTRA_MISSING",
            f"`lookback {name}` is not installed: pip install 'lookback[{name}]'",
        )
    point = next(iter(points))
    try:
        command = point.load()
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] in ("svc", "kvstore", "retrieval"):
            raise
        raise CommandError(
            "EXTRA_MISSING",
            f"`lookback {name}` needs {missing}: pip install 'lookback[{name}]'",
        ) from error
    status: int = command(arguments)
    if status:
        raise typer.Exit(status)
