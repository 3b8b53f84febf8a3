"""A chosen unit brings its neighbours: what happens takes longer than one unit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def with_neighbours(order: NDArray[np.int64], unit_count: int, reach: int) -> NDArray[np.int64]:
    """Return candidates, best first, each followed by those up to `reach` before and after it.

    Args:
        order: (n,) candidates.
        unit_count: units are in [0, unit_count).
        reach: >= 0.
    """
    steps = sorted(range(-reach, reach + 1), key=abs)
    spread = (order[:, None] + np.array(steps)).reshape(-1)
    spread = spread[(spread >= 0) & (spread < unit_count)]
    _, first = np.unique(spread, return_index=True)
    first_of_each: NDArray[np.int64] = spread[np.sort(first)]
    return first_of_each
