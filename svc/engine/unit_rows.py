"""What a unit is found by: one row of the key index, the mean of its keys in each layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.geometry import Geometry
from kvstore.mean_keys import mean_key
from svc.engine.layout import pictured, places

Array = np.ndarray[Any, Any]


class UnitRows:
    """Makes the rows of a session's units, one after the other.

    A unit that lacks what repeats an earlier one still shows it. Its row is the mean over all its
    places, each with the key that was last kept there, as if it were whole: of the few tokens
    that such a unit keeps alone, the mean is louder than that of a whole one, and still pictures
    would crowd out what a question is about.
    """

    def __init__(self, geometry: Geometry, *, all_places: bool) -> None:
        """`all_places`: as above, for reductions that keep a unit whole now and then; else a row is
        the mean of what its unit kept."""
        self.geometry = geometry
        self.all_places = all_places
        self._places: NDArray[np.int64] = np.empty(0, np.int64)
        shape = (geometry.layer_count, 0, geometry.kv_head_count, geometry.head_dim)
        self._keys: Array = np.empty(shape, geometry.storage_dtype)

    def of(self, cells: Array, keys: Array) -> NDArray[np.float32]:
        """Return the row of the next unit. The same units before it give the same bits.

        Args:
            cells: (n, 2) row and column of each kept token, no cell twice. Text is left out: units
                would be alike by it.
            keys: (layers, n, kv_heads, head_dim) as stored, before RoPE.

        Returns:
            (layers, kv_heads * head_dim) float32.
        """
        shown = pictured(cells)
        if not shown.all():
            cells, keys = cells[shown], keys[:, shown]
        if self.all_places:
            keys = self._with_earlier(cells, keys)
        row: NDArray[np.float32] = np.stack([mean_key(self.geometry, layer) for layer in keys])
        return row

    def _with_earlier(self, cells: Array, keys: Array) -> Array:
        own = places(cells)
        stay = ~np.isin(self._places, own)
        together = np.concatenate([self._places[stay], own])
        order = np.argsort(together)
        self._places = together[order]
        self._keys = np.concatenate([self._keys[:, stay], keys], axis=1)[:, order]
        return self._keys
