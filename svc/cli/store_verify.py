"""`lookback store verify`: reads all that is kept, as fast as it can be read."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from svc.cli.failures import CommandError
from svc.cli.store_folder import (
    FolderArgument,
    JsonOption,
    SessionsArgument,
    byte_progress,
    chosen_sessions,
    mib,
    require_store,
)
from svc.cli.text import printable

if TYPE_CHECKING:
    from kvstore.checking import Damage
    from kvstore.verify import StoreReport


def verify(
    folder: FolderArgument, sessions: SessionsArgument = None, as_json: JsonOption = False
) -> None:
    """Reads everything that is kept and checks it; the service may be running.

    Exit status 1 if anything is damaged.
    """
    from kvstore.verify import verify_store

    chosen = chosen_sessions(folder, sessions) if sessions else None
    require_store(folder)
    with byte_progress("verify") as progress:
        report = verify_store(folder, progress, chosen)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(report)) + "\n")
    else:
        for damage in report.damage:
            sys.stdout.write(damage_line(damage))
        sys.stdout.write(summary_line(report))
    fail_if_damaged(folder, report)


def damage_line(damage: Damage) -> str:
    """Returns the line that says where something is damaged, and how."""
    parts = [damage.session_id]
    for name in ("block_index", "unit_index", "layer_index"):
        value = getattr(damage, name)
        if value is not None:
            parts.append(f"{name.removesuffix('_index')} {value}")
    return printable(f"{', '.join(parts)}: {damage.reason}") + "\n"


def summary_line(report: StoreReport) -> str:
    """Returns the line that says how much was read."""
    return (
        f"{report.session_count} sessions, {report.block_count} blocks, "
        f"{report.unit_count} units, {mib(report.byte_count)} read\n"
    )


def fail_if_damaged(folder: Path, report: StoreReport) -> None:
    """Raises CommandError if anything is damaged."""
    if report.damage:
        raise CommandError("STORE_DAMAGED", f"{len(report.damage)} damaged places in {folder}")
