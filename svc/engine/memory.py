"""The seam that answers read the past through: a snapshot's units, scored and loaded by layer."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvstore.errors import UnitsThinnedError
from kvstore.geometry import Tier
from svc.engine.layout import Cells, UnitLayout


class Memory(Protocol):
    """One snapshot of one session, for one question. Nothing after the snapshot is in it.

    Units are numbered from 0, in time order, without gaps. Used from one thread.
    `scores` and `load` raise errors of kvstore and retrieval; these end that one answer.
    """

    @property
    def unit_count(self) -> int:
        """Units in the snapshot."""
        ...

    @property
    def first_unit(self) -> int:
        """Units before it were dropped from the store, and are none to choose from."""
        ...

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """(unit_count,): kept tokens of each unit."""
        ...

    @property
    def position_spans(self) -> NDArray[np.int64]:
        """(unit_count,): positions each unit takes, dropped tokens included."""
        ...

    @property
    def repeats(self) -> NDArray[np.bool_]:
        """(unit_count,): units that kept one of several tokens of a picture when stored."""
        ...

    @property
    def tiers(self) -> Mapping[int, Tier]:
        """Slowest tier each unit was loaded from so far."""
        ...

    @property
    def coarsened(self) -> Set[int]:
        """Units loaded so far that had lost tokens, to make room, by the time of some load."""
        ...

    def meet(self, thinned: UnitsThinnedError) -> None:
        """Go on with the units as they are now: their counts and cells are fewer from here on."""
        ...

    @property
    def layout(self) -> UnitLayout:
        """Where the tokens of the session's units stand."""
        ...

    def cells(self, units: NDArray[np.int64]) -> Cells:
        """Return each kept token's cell, unit after unit: (sum of token counts, 2) uint16."""
        ...

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the inner product of `query` with each unit's mean key before RoPE.

        Args:
            layer: from 0.
            query: (kv_heads * head_dim,) float32, of `retrieval.query.rekv_query`.

        Returns:
            (unit_count,) float32; -inf for dropped units.
        """
        ...

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return keys before RoPE and values of the units, in the order given.

        Returns:
            keys, values: each (sum of token counts, kv_heads, head_dim), in the model's dtype,
            on any device; valid until the next call.
        """
        ...
