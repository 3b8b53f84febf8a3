"""`lookback store scrub`: reads all that is kept, slowly, and says what is damaged at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svc.amounts import parse_bytes
from svc.cli.store_folder import (
    FolderArgument,
    SessionsArgument,
    byte_progress,
    chosen_sessions,
    mib,
    require_store,
)
from svc.cli.store_verify import damage_line, fail_if_damaged, summary_line

if TYPE_CHECKING:
    from kvstore.checking import Damage

_RATE_BYTES_PER_S = 32 << 20


def _rate(text: str | int) -> int:
    """Returns bytes a second, at least 1."""
    rate = text if isinstance(text, int) else parse_bytes(text)
    if rate < 1:
        raise ValueError(f"{text!r} would never end: give at least 1")
    return rate


def scrub(
    folder: FolderArgument,
    sessions: SessionsArgument = None,
    rate_bytes_per_s: Annotated[
        int,
        typer.Option(
            "--rate-bytes-per-s",
            parser=_rate,
            metavar="SIZE",
            help="Read no faster: bytes a second, or as 32MiB. ",
            show_default="32MiB",
        ),
    ] = _RATE_BYTES_PER_S,
) -> None:
    """Reads every slice of every session at a limited rate; the service may be running.

    Says what is damaged when it is found. Exit status 1 if anything is; a Ctrl-C says how far it
    came.
    """
    from kvstore.scrub import Pace
    from kvstore.verify import StoreCheck

    chosen = chosen_sessions(folder, sessions) if sessions else None
    require_store(folder)
    pace = Pace(rate_bytes_per_s)
    damaged_count = 0

    def tell(damage: Damage) -> None:
        nonlocal damaged_count
        damaged_count += 1
        sys.stdout.write(damage_line(damage))
        sys.stdout.flush()

    with byte_progress("scrub") as progress:

        def read(done_bytes: int, total_bytes: int) -> None:
            progress(done_bytes, total_bytes)
            pace(done_bytes, total_bytes)

        check = StoreCheck(folder, session_ids=chosen, progress=read, on_damage=tell)
        try:
            report = check.run()
        except KeyboardInterrupt:
            sys.stderr.write(
                f"stopped at {check.place}: {mib(check.read_bytes)} read, "
                f"{damaged_count} damaged places so far\n"
            )
            raise
    sys.stdout.write(summary_line(report))
    fail_if_damaged(folder, report)
