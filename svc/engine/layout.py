"""How the tokens of a session's units lie: what is stored of a token is its cell.

A token of the picture has the row and column of the grid; a token of text that goes with a unit
(a timestamp, a mark) has a row of its own, beyond every grid. Positions follow from cells.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvstore.unit import FIRST_TEXT_ROW

TEXT_AFTER_ROW = FIRST_TEXT_ROW
"""Row of text after the picture; the column counts from 0."""
TEXT_BEFORE_ROW = FIRST_TEXT_ROW + 1
"""Row of text before the picture; the column counts from 0."""

Cells = np.ndarray[Any, Any]


class UnitLayout(Protocol):
    """Where the tokens of a session's units stand. Positions have one axis, or more (M-RoPE)."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a whole unit's picture, whose tokens lie in reading order."""
        ...

    @property
    def tokens_per_unit(self) -> int:
        """Tokens of a whole unit, the most where it varies with its text."""
        ...

    @property
    def position_span(self) -> int:
        """Positions that a whole unit takes, the most where it varies with its text."""
        ...

    @property
    def advance(self) -> tuple[int, ...]:
        """Per axis 1 where units follow one another, 0 where all begin at the same place."""
        ...

    @property
    def overhang(self) -> int:
        """Positions, at most, by which a question stands behind the spans of its units."""
        ...

    def whole_cells(self, token_count: int) -> Cells:
        """Return the cells, (token_count, 2) uint16, of a unit of which nothing was dropped."""
        ...

    def local_positions(self, cells: Cells, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each token's position from where its unit begins.

        Args:
            cells: (n, 2) of the kept tokens, unit after unit.
            counts: (units,) tokens of each, of sum n.

        Returns:
            (axes, n); on axes that advance, below the unit's span.
        """
        ...

    def question_offset(self, spans: NDArray[np.int64]) -> int:
        """Return where a question stands, counted from where the first of its units begins.

        Args:
            spans: (units,) positions that each unit takes; none is allowed.
        """
        ...


def grid_cells(grid: tuple[int, int]) -> Cells:
    """Return (rows * columns, 2) uint16: the cells of a grid in reading order."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return np.stack([rows, columns], axis=1).astype(np.uint16)


def pictured(cells: Cells) -> NDArray[np.bool_]:
    """Return which of the cells, (n, 2), are of the picture and not of a text."""
    shown: NDArray[np.bool_] = cells[:, 0] < FIRST_TEXT_ROW
    return shown


def places(cells: Cells) -> NDArray[np.int64]:
    """Return one number for each cell, (n,), ascending in reading order, text behind."""
    numbers: NDArray[np.int64] = cells.astype(np.int64) @ np.array([1 << 16, 1])
    return numbers
