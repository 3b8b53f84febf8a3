"""Scores without their trend over time: on some streams later frames score higher, whatever they
show (MemStream, arXiv:2602.18434).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def trend(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the straight line of least squares through scores over time, (n,)."""
    time = np.arange(len(scores)) - (len(scores) - 1) / 2
    squares = float(time @ time)
    values = scores.astype(np.float64)
    slope = float(time @ values) / squares if squares else 0.0
    line: NDArray[np.float64] = values.mean() + slope * time
    return line


def detrended(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (n,) scores less their `trend`; each depends on all n, and on nothing else."""
    rest: NDArray[np.float64] = scores - trend(scores)
    return rest
