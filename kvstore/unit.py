"""A unit: what the vision tower takes at once, and one row of the unit table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

FIRST_TEXT_ROW = 0xFFFE
"""Rows from here on are of tokens of text that go with a unit, such as a timestamp, and not of its
picture: thinning leaves them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """What the store keeps about a unit beside its keys and values."""

    index: int
    """Position in the session, from 0, without gaps."""
    first_pts_s: float
    last_pts_s: float
    """Presentation time of its last frame; a snapshot is cut by this."""
    token_count: int
    """Kept tokens, at least 1."""
    position_span: int
    """Positions the whole grid takes, dropped tokens included."""
    cells: np.ndarray[Any, Any]
    """(token_count, 2) uint16: row and column of each kept token, in the order of the tokens."""
    drop_fraction: float
    """Share of its picture's tokens that were dropped, in [0, 1]."""
    gap_before: bool
    thumbnail_jpeg: bytes
    """JPEG of the unit's first frame; may be empty."""

    def __post_init__(self) -> None:
        if self.index < 0 or self.token_count < 1 or self.position_span < 1:
            raise ValueError(
                "index must be >= 0, token_count and position_span >= 1, got "
                f"{self.index}, {self.token_count}, {self.position_span}"
            )
        if not (math.isfinite(self.first_pts_s) and math.isfinite(self.last_pts_s)):
            raise ValueError(f"pts must be finite, got {self.first_pts_s}, {self.last_pts_s}")
        if self.last_pts_s < self.first_pts_s:
            raise ValueError(
                f"last_pts_s {self.last_pts_s} lies before first_pts_s {self.first_pts_s}"
            )
        if not 0.0 <= self.drop_fraction <= 1.0:
            raise ValueError(f"drop_fraction must be in [0, 1], got {self.drop_fraction}")
        if self.cells.dtype != np.uint16 or self.cells.shape != (self.token_count, 2):
            raise ValueError(
                f"cells must be ({self.token_count}, 2) uint16, got "
                f"{self.cells.shape} {self.cells.dtype}"
            )
