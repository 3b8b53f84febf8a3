"""Measured figures: the row they share, the table on the terminal, the file, the README's tables.

A results file is one JSON object `{"name", "machine", "versions", "commit", "created", "rows"}`.
`python -m svc.report README.md` rewrites the README's tables from the files that its markers name:

    <!-- figures: eval/results/answer.json -->
    ...
    <!-- /figures -->
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

_PACKAGES = ("torch", "transformers", "av", "faiss-cpu", "grpcio")
_MARKER = re.compile(r"(<!-- figures: (?P<path>\S+) -->\n).*?(<!-- /figures -->)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure, beside what it is compared with and what was aimed at."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    """The same quantity of the baseline that ran beside it, in `unit`."""
    ratio: float | None = None
    """What `target` speaks of: value to baseline, or baseline to value, as `name` says."""
    ratio_span: tuple[float, float] | None = None
    """The least and the largest ratio of single turns, where `ratio` is their median."""
    target: str = ""
    """The aim, as a comparison with `ratio` if there is one, else with `value`: ">= 0.7"."""

    @property
    def met(self) -> bool | None:
        """Whether the aim was reached; None where there is none."""
        if not self.target:
            return None
        comparison, _, bound = self.target.partition(" ")
        measured = self.value if self.ratio is None else self.ratio
        if comparison == ">=":
            return measured >= float(bound)
        if comparison == "<=":
            return measured <= float(bound)
        raise ValueError(f"target must be '>= number' or '<= number', got {self.target!r}")

    def as_json(self) -> dict[str, Any]:
        """Returns the row as it stands in a results file."""
        return {**asdict(self), "met": self.met}


def print_rows(title: str, rows: Sequence[Row], console: Console) -> None:
    """Prints a table of the rows."""
    table = Table(title=title)
    head, *lines = table_cells(rows)
    for i, heading in enumerate(head):
        table.add_column(heading, justify="right" if i else "left")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def table_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns the texts of a table of the rows, its headings first."""
    head = ("figure", "value", "baseline", "ratio", "target", "met")
    return [head, *((row.name, *_cells(row)) for row in rows)]


def write_rows(path: Path, name: str, rows: Sequence[Row]) -> None:
    """Writes a results file, with what it was measured on; replaces it whole."""
    report = {
        "name": name,
        "machine": _machine(),
        "versions": {package: metadata.version(package) for package in _PACKAGES},
        "commit": _commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": [row.as_json() for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


def markdown(report: dict[str, Any]) -> str:
    """Returns a results file as a Markdown table with a line on where it was measured."""
    lines = ["| figure | value | baseline | ratio | target | met |", "|---|---|---|---|---|---|"]
    for fields in report["rows"]:
        row = Row(**{key: value for key, value in fields.items() if key != "met"})
        lines.append("| " + " | ".join([row.name, *_cells(row)]) + " |")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += ["", f"{report['machine']}; {versions}; commit {report['commit']}.", ""]
    return "\n".join(lines)


def fill(text: str, root: Path) -> str:
    """Returns a README's text with each marked table made anew from its file.

    Raises:
        FileNotFoundError: a marker names a file that is not there.
    """

    def table(match: re.Match[str]) -> str:
        report = json.loads((root / match["path"]).read_text())
        return f"{match[1]}{markdown(report)}{match[3]}"

    return _MARKER.sub(table, text)


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    met: dict[bool | None, Literal["yes", "no", ""]] = {True: "yes", False: "no", None: ""}
    return (
        f"{_short(row.value)} {row.unit}",
        "" if row.baseline is None else f"{_short(row.baseline)} {row.unit}",
        _ratio(row),
        row.target,
        met[row.met],
    )


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    if row.ratio_span is None:
        return f"{row.ratio:.3g}"
    least, most = row.ratio_span
    return f"{row.ratio:.3g} ({least:.2g} to {most:.2g})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
        model = names[0] if names else model
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {memory_gib:.0f} GiB"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def main() -> int:
    """Entry point: rewrites a file's tables, or with --check says whether they are up to date."""
    parser = argparse.ArgumentParser(description="Rewrites the tables of measured figures.")
    parser.add_argument("readme", type=Path)
    parser.add_argument("--check", action="store_true", help="fail if a table is out of date")
    arguments = parser.parse_args()
    text = arguments.readme.read_text()
    filled = fill(text, arguments.readme.resolve().parent)
    if arguments.check:
        if filled != text:
            sys.stderr.write(
                f"{arguments.readme}: tables out of date, run `python -m svc.report`\n"
            )
        return int(filled != text)
    arguments.readme.write_text(filled)
    return 0


if __name__ == "__main__":
    sys.exit(main())
