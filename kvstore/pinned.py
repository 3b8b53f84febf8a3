"""Spans of a stream that must stay as they are, and what lies in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Pinned = Callable[[], Sequence[tuple[float, float]]]
"""Half-open spans of pts in seconds; asked anew whenever something is to go."""


def touches(
    spans: Sequence[tuple[float, float]], first_pts_s: Any, last_pts_s: Any
) -> np.ndarray[Any, Any]:
    """Which units, or runs of units, lie in a span, if only in part.

    Args:
        spans: half-open, in seconds.
        first_pts_s: (n,) or one; presentation time of the first frame of each.
        last_pts_s: as `first_pts_s`, of the last frame.

    Returns:
        (n,) bool.
    """
    first, last = np.atleast_1d(first_pts_s), np.atleast_1d(last_pts_s)
    touched = np.zeros(first.shape, np.bool_)
    for start, stop in spans:
        touched |= (first < stop) & (last >= start)
    return touched
