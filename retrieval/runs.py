"""No ten copies of one still scene: of a run of units that resemble each other, only the best.

A run is what lies between two changes: neighbours belong to one while their keys, less the mean of
those compared, point the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_COSINE = 0.5
"""Of the centred mean keys of two neighbours of one run."""


def runs(
    units: NDArray[np.int64], rows: NDArray[np.float32], *, min_cosine: float = MIN_COSINE
) -> NDArray[np.int64]:
    """Return (n,) which run each unit is of, counted from 0.

    Args:
        units: (n,) ascending; units that are no neighbours are of different runs.
        rows: (n, dim), their mean keys in one layer.
        min_cosine: below it a run ends.
    """
    centred = rows - rows.mean(axis=0, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    products = (centred[1:] * centred[:-1]).sum(axis=1)
    alike = products >= min_cosine * lengths[1:] * lengths[:-1]
    changes = (np.diff(units) != 1) | ~alike
    numbers: NDArray[np.int64] = np.r_[0, np.cumsum(changes)].astype(np.int64)
    return numbers[: len(units)]


def capped(
    order: NDArray[np.int64], run_of: NDArray[np.int64], max_count: int
) -> NDArray[np.int64]:
    """Return `order` (candidates, best first) without what comes after `max_count` of one run.

    Args:
        order: (n,) indices into `run_of`.
        run_of: (units,) which run each is of.
        max_count: of one run, >= 1.
    """
    taken: dict[int, int] = {}
    kept: list[int] = []
    for unit in order.tolist():
        run = int(run_of[unit])
        taken[run] = taken.get(run, 0) + 1
        if taken[run] <= max_count:
            kept.append(unit)
    return np.array(kept, np.int64)
