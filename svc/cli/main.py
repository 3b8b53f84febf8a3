"""The command `lookback`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from svc.cli import added, ask, bench, demo, models, push, serve, sessions, store
from svc.cli.failures import EXIT_FAILED, EXIT_INTERRUPTED, failure_of, report
from svc.cli.remote import (
    IngestAddressOption,
    QaAddressOption,
    ServerOption,
    endpoints,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"lookback {metadata.version('lookback')}\n")
        raise typer.Exit


@app.callback()
def _lookback(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    server: ServerOption = None,
    ingest_address: IngestAddressOption = None,
    qa_address: QaAddressOption = None,
) -> None:
    """Watches live video and answers questions about it: now, and anything it has ever shown."""
    context.obj = endpoints(context, server, ingest_address, qa_address)


app.command()(serve.serve)
app.command()(serve.ingest)
app.command()(serve.qa)
app.command()(push.push)
app.command()(ask.ask)
app.add_typer(sessions.app, name="sessions")
app.add_typer(store.app, name="store")
app.add_typer(bench.app, name="bench")
app.command()(demo.demo)
app.command()(models.models)
app.command("eval", context_settings=added.CONTEXT_SETTINGS)(added.evaluate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    try:
        status = app(arguments, prog_name="lookback", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        message = error.format_message().replace(": Value error, ", ": ")
        if message:  # help was shown where a command is missing: enough said
            report("USAGE", message)
        return error.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone. What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        report(failure.reason, str(failure))
        return failure.exit_status
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
