"""A row of a figure and its yardstick that took turns: of each turn's ratio, the median counts.

What one turn of the two has to do with a neighbour, or with a disk that swings, the other has too.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from svc.report import Row

GB = 1e9


def rate_row(name: str, ours: Sequence[float], base: Sequence[float], target: str) -> Row:
    """Returns the row of rates in bytes per second; see `paired_row`."""
    return paired_row(
        name, [rate / GB for rate in ours], [rate / GB for rate in base], "GB/s", target
    )


def paired_row(
    name: str, ours: Sequence[float], base: Sequence[float], unit: str, target: str
) -> Row:
    """Returns the row of medians.

    Args:
        name: of the figure.
        ours: what was measured, turn by turn.
        base: the yardstick, of the same turns.
        unit: of both.
        target: see `svc.report.Row`.
    """
    ratios = [one / other for one, other in zip(ours, base, strict=True)]
    return Row(
        name=name,
        value=median(ours),
        unit=unit,
        baseline=median(base),
        ratio=median(ratios),
        ratio_span=(min(ratios), max(ratios)),
        target=target,
    )
