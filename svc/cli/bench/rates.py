"""A row of two rates that took turns: the best of each are compared."""

from __future__ import annotations

from svc.report import Row

GB = 1e9


def rate_row(name: str, ours: list[float], base: list[float], target: str) -> Row:
    """Returns the row; rates are in bytes per second."""
    best, best_base = max(ours), max(base)
    return Row(
        name=name,
        value=best / GB,
        unit="GB/s",
        baseline=best_base / GB,
        ratio=best / best_base,
        target=target,
    )
