"""Units spread evenly over time: for questions about the whole of a stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly(unit_count: int, count: int) -> NDArray[np.int64]:
    """Return min(count, unit_count) of the units [0, unit_count), first and last among them."""
    if count >= unit_count:
        return np.arange(unit_count)
    return np.linspace(0, unit_count - 1, count).round().astype(np.int64)
