"""`lookback store scrub`: reads all that is kept, slowly, and says what is damaged at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from svc.cli.store_folder import FolderArgument, byte_progress, mib, require_store
from svc.cli.store_verify import damage_line, fail_if_damaged, summary_line

if TYPE_CHECKING:
    from kvstore.checking import Damage

_RATE_BYTES_PER_S = 32 << 20


def scrub(
    folder: FolderArgument,
    rate_bytes_per_s: Annotated[
        int, typer.Option("--rate-bytes-per-s", metavar="N", min=1, help="Read no faster.")
    ] = _RATE_BYTES_PER_S,
) -> None:
    """Reads every slice of every session at a limited rate; the service may be running.

    Says what is damaged when it is found. Exit status 1 if anything is; a Ctrl-C says how far it
    came.
    """
    from kvstore.scrub import Pace
    from kvstore.verify import StoreCheck

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

        check = StoreCheck(folder, progress=read, on_damage=tell)
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
