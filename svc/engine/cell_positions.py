"""Where in a unit the token of a cell lies: what is stored of a token is its cell."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from svc.engine.adapters.base import Adapter


class CellPositions:
    """Positions of a full unit's cells."""

    def __init__(self, adapter: Adapter) -> None:
        cells = adapter.cells()
        self.whole: NDArray[np.int64] = adapter.local_positions()
        """(tokens_per_unit,): of a unit that nothing was dropped of."""
        self._table = np.zeros(cells.max(axis=0) + 1, np.int64)
        self._table[cells[:, 0], cells[:, 1]] = self.whole

    def of(self, cells: np.ndarray[Any, Any]) -> NDArray[np.int64]:
        """Return (n,) positions within the unit's span of (n, 2) rows and columns."""
        rows, columns = cells.T
        positions: NDArray[np.int64] = self._table[rows, columns]
        return positions
