"""Commands whose modules are imported when they run, for what they import is large."""

from __future__ import annotations

import importlib

import typer

from svc.cli.remote import service_errors
from svc.cli.videos import video_errors


def add_lazily(app: typer.Typer, *, name: str, module: str, help_text: str) -> None:
    """Adds a command that hands its whole command line, help included, to a module.

    The module has either an `app` (a group of commands) or a function of the command's name.
    """

    def run(context: typer.Context) -> None:
        loaded = importlib.import_module(module)
        inner = getattr(loaded, "app", None)
        if inner is None:
            inner = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
            inner.command()(getattr(loaded, name))
        path = f"lookback {name}"
        with service_errors(), video_errors():
            status = inner(context.args, prog_name=path, standalone_mode=False)
        raise typer.Exit(status or 0)

    app.command(
        name,
        help=help_text,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(run)
