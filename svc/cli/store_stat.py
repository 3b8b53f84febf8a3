"""`lookback store stat`: how much is kept, of what, and what an hour of stream takes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svc.cli.store_folder import FolderArgument, JsonOption, mib, require_store
from svc.cli.text import printable
from svc.cli.times import format_time

if TYPE_CHECKING:
    from kvstore.stat import SessionStat

_SUMMED = (
    "visible_unit_count",
    "durable_unit_count",
    "dropped_unit_count",
    "thinned_unit_count",
    "token_count",
    "block_count",
    "segment_count",
    "logical_bytes",
    "physical_bytes",
    "index_bytes",
    "covered_s",
    "damaged_slice_count",
)
_HOUR_S = 3600.0
_PIPE_WIDTH = 160


def stat(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Says how much each session holds and takes; the service may be running.

    Reads headers and file sizes, no keys and values: use `store verify` to check those.
    """
    from kvstore.stat import stat_store

    require_store(folder)
    found = stat_store(folder)
    if as_json:
        report = {"sessions": [session_json(each) for each in found], "total": total_json(found)}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _print_table(folder, found)


def session_json(stat: SessionStat) -> dict[str, Any]:
    """Returns the object that `--json` prints for a session."""
    fields = dataclasses.asdict(stat)
    return {
        "session": fields.pop("session_id"),
        **fields,
        "covered_s": stat.covered_s,
        "bytes_per_stream_hour": stat.bytes_per_stream_hour,
    }


def total_json(stats: list[SessionStat]) -> dict[str, Any]:
    """Returns the sums over all sessions; what damage hides counts as nothing."""
    total: dict[str, Any] = {"session_count": len(stats)}
    for name in _SUMMED:
        total[name] = sum(getattr(stat, name) or 0 for stat in stats)
    covered_s = total["covered_s"]
    hourly = total["physical_bytes"] / covered_s * _HOUR_S if covered_s > 0 else None
    total["bytes_per_stream_hour"] = hourly
    total["damaged_session_count"] = sum(1 for stat in stats if stat.damage)
    return total


def _print_table(folder: Path, stats: list[SessionStat]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("session", overflow="fold", min_width=12)
    table.add_column("state")
    headings = ("units", "dropped", "thinned", "blocks", "stream", "K and V", "on disk", "index")
    for heading in (*headings, "per hour", "as"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in stats:
        table.add_row(
            printable(each.session_id),
            _state(each),
            *_cells(session_json(each)),
            each.encoding or "",
        )
    total = total_json(stats)
    table.add_row(f"{len(stats)} in all", "", *_cells(total), "", style="bold")
    # A pipe has no width of its own; half a table would be worse than long lines.
    Console(markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
    for each in stats:
        for reason in each.damage:
            sys.stdout.write(f"damaged: {printable(reason)}\n")
    if total["damaged_session_count"]:
        sys.stdout.write(f"more: lookback store verify {folder}\n")


def _state(stat: SessionStat) -> str:
    writer = ", open" if stat.writer == "open" else ", failed" if stat.writer == "failed" else ""
    return f"{stat.state or '?'}{writer}"


def _cells(fields: dict[str, Any]) -> list[str]:
    units, dropped = fields["visible_unit_count"], fields["dropped_unit_count"]
    left = None if units is None else units - dropped
    counts = [left, dropped, fields["thinned_unit_count"], fields["block_count"]]
    cells = ["?" if count is None else f"{count:,}" for count in counts]
    cells.append(format_time(fields["covered_s"]))
    sizes = (fields["logical_bytes"], fields["physical_bytes"], fields["index_bytes"])
    cells += ["?" if size is None else mib(size) for size in sizes]
    hourly = fields["bytes_per_stream_hour"]
    return [*cells, "" if hourly is None else mib(hourly)]
