"""Presentation times: what is accepted as one."""

from __future__ import annotations

import math

from svc.video.errors import PtsError

MAX_ABS_PTS_S = 1e10
"""About 317 years. Up to here a float still tells microseconds apart."""


def checked_pts(pts_s: float) -> float:
    """Return the presentation time in seconds, if it is one.

    Raises:
        PtsError: it is NaN, infinite, or beyond +-MAX_ABS_PTS_S.
    """
    if not math.isfinite(pts_s) or abs(pts_s) > MAX_ABS_PTS_S:
        raise PtsError(
            pts_s=pts_s, reason=f"must be finite and within +-{MAX_ABS_PTS_S:.0e} seconds"
        )
    return pts_s
