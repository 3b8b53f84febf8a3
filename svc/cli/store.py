"""`lookback store`: the folder in which memory is kept."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from svc.cli import store_archive, store_stat
from svc.cli.failures import CommandError
from svc.cli.store_folder import FolderArgument, JsonOption, byte_progress, mib, require_store

if TYPE_CHECKING:
    from kvstore.verify import Damage, StoreReport

app = typer.Typer(no_args_is_help=True, help="Looks after the folder in which memory is kept.")

app.command()(store_stat.stat)
app.command()(store_archive.export)
app.command("import")(store_archive.import_)


@app.command()
def verify(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Reads everything that is kept and checks it; the service may be running.

    Exit status 1 if anything is damaged.
    """
    require_store(folder)
    report = _verify(folder)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(report)) + "\n")
    else:
        for damage in report.damage:
            sys.stdout.write(f"{_place(damage)}: {damage.reason}\n")
        sys.stdout.write(
            f"{report.session_count} sessions, {report.block_count} blocks, "
            f"{report.unit_count} units, {mib(report.byte_count)} read\n"
        )
    if report.damage:
        raise CommandError("STORE_DAMAGED", f"{len(report.damage)} damaged places in {folder}")


def _verify(folder: Path) -> StoreReport:
    from kvstore.verify import verify_store

    with byte_progress("verify") as progress:
        return verify_store(folder, progress)


def _place(damage: Damage) -> str:
    parts = [damage.session_id]
    for name in ("block_index", "unit_index", "layer_index"):
        value = getattr(damage, name)
        if value is not None:
            parts.append(f"{name.removesuffix('_index')} {value}")
    return ", ".join(parts)
