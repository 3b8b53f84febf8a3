"""`lookback store`: the folder in which memory is kept."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.failures import CommandError

if TYPE_CHECKING:
    from kvstore.verify import Damage, StoreReport

app = typer.Typer(no_args_is_help=True, help="Looks after the folder in which memory is kept.")


@app.callback()
def _group() -> None:
    """Makes `verify` a command of a group, alone as it is."""


@app.command()
def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Folder of the service."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Reads everything that is kept and checks it; the service may be running.

    Exit status 1 if anything is damaged.
    """
    from kvstore.paths import sessions_folder

    if not sessions_folder(folder).is_dir():
        raise CommandError("STORE_NOT_FOUND", f"{folder} holds no memory of Lookback")
    report = _verify(folder)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(report)) + "\n")
    else:
        for damage in report.damage:
            sys.stdout.write(f"{_place(damage)}: {damage.reason}\n")
        sys.stdout.write(
            f"{report.session_count} sessions, {report.block_count} blocks, "
            f"{report.unit_count} units, {report.byte_count / 2**20:,.1f} MiB read\n"
        )
    if report.damage:
        raise CommandError("STORE_DAMAGED", f"{len(report.damage)} damaged places in {folder}")


def _verify(folder: Path) -> StoreReport:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from kvstore.verify import verify_store

    console = Console(stderr=True)
    if not console.is_terminal:
        return verify_store(folder)
    with Progress(
        BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("verify", total=None)
        return verify_store(
            folder, lambda done, total: bar.update(task, completed=done, total=total)
        )


def _place(damage: Damage) -> str:
    parts = [damage.session_id]
    for name in ("block_index", "unit_index", "layer_index"):
        value = getattr(damage, name)
        if value is not None:
            parts.append(f"{name.removesuffix('_index')} {value}")
    return ", ".join(parts)
