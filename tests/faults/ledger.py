"""What a long fault run did: one line for each kind of fault, printed when the run ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Line:
    """Faults of one kind, and what was at stake while they happened."""

    what: str
    fault_count: int = 0
    acknowledged_count: int = 0
    """Units that were acknowledged before or between the faults, and looked for afterwards."""
    checked_count: int = 0
    """Units compared with what was written, byte for byte; 0 where the test does not count them."""
    broken: str = ""
    """The first broken promise. The run of this kind ends with it, so nothing is averaged away."""


@dataclass
class Ledger:
    """The lines of a run, in the order in which they were begun."""

    lines: list[Line] = field(default_factory=list)

    @contextmanager
    def line(self, what: str) -> Iterator[Line]:
        """Begin a line; whatever ends the block early is written down in it, and raised."""
        line = Line(what)
        self.lines.append(line)
        try:
            yield line
        except BaseException as error:
            line.broken = f"{type(error).__name__}: {error}".splitlines()[0]
            raise


def table(lines: Sequence[Line]) -> list[str]:
    """The lines as text. A line whose promises held has lost nothing and served nothing wrong."""
    width = max(len(line.what) for line in lines)
    headings = f"{'what':{width}}  {'faults':>7}  {'acknowledged':>12}  {'checked':>9}  {'lost':>5}"
    rows = [f"{headings}  {'wrong bytes served':>18}"]
    for line in lines:
        counts = (
            f"{line.what:{width}}  {line.fault_count:7,}  {line.acknowledged_count:12,}  "
            f"{line.checked_count or '':>9}  "
        )
        rows.append(counts + (f"BROKEN: {line.broken}" if line.broken else f"{0:5}  {0:18}"))
    broken_count = sum(bool(line.broken) for line in lines)
    rows.append(
        f"{'all':{width}}  {sum(line.fault_count for line in lines):7,}  "
        f"{sum(line.acknowledged_count for line in lines):12,}  "
        f"{sum(line.checked_count for line in lines):9,}  "
        + (f"{broken_count} kinds BROKEN" if broken_count else f"{0:5}  {0:18}")
    )
    return rows
