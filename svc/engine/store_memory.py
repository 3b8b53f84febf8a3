"""Memory over a session's store and key index: what answers read in the running service."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvstore.aligned import KVMemory
from kvstore.encoding import Layout
from kvstore.errors import UnitsThinnedError
from kvstore.geometry import Geometry, Tier
from kvstore.guarded import GuardedReader
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from retrieval.index import KeyIndexReader
from svc.engine.layout import Cells, UnitLayout
from svc.engine.model import LoadedModel
from svc.engine.stored_codec import decode_units, decodes_on
from svc.engine.stored_kv import from_stored


class StoreMemory:
    """One snapshot of one session; see `svc.engine.memory.Memory`.

    Reads straight from the reader and the index, which it does not own. Their rows and units
    beyond the snapshot have no influence.
    """

    def __init__(
        self,
        model: LoadedModel,
        reader: SessionReader | GuardedReader,
        index: KeyIndexReader,
        snapshot: Snapshot,
        layout: UnitLayout | None = None,
    ) -> None:
        """Bind the three, which are of one session; `layout` is its own, else the model's usual.

        Raises:
            EpochChangedError: `index` is not of the snapshot's epoch; take both anew.
        """
        index.require_epoch(snapshot.epoch)
        self.tiers: dict[int, Tier] = {}
        """Slowest tier each unit was loaded from so far."""
        self.coarsened: set[int] = set()
        """Units loaded so far that had lost tokens by the time of some load."""
        self._reader = reader
        self._index = index
        self._snapshot = snapshot
        self._kv = KVMemory()
        self._device = model.decoder.device
        self._geometry = Geometry(
            layer_count=model.layer_count,
            kv_head_count=model.kv_head_count,
            head_dim=model.head_dim,
            element=model.element,
        )
        self._layout = layout or model.adapter

    @property
    def unit_count(self) -> int:
        """Units in the snapshot."""
        return self._snapshot.unit_count

    @property
    def first_unit(self) -> int:
        """Units before it were dropped from the store, and are none to choose from."""
        return self._snapshot.first_unit

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """(unit_count,): kept tokens of each unit, as the next load reads it."""
        counts: NDArray[np.int64] = self._snapshot.token_counts
        return counts

    @property
    def position_spans(self) -> NDArray[np.int64]:
        """(unit_count,): positions each unit takes, dropped tokens included."""
        spans: NDArray[np.int64] = self._snapshot.position_spans
        return spans

    @property
    def repeats(self) -> NDArray[np.bool_]:
        """(unit_count,): units that kept one token of several when they were stored."""
        snapshot = self._snapshot
        rows, columns = self._layout.grid
        kept_counts = np.rint((1 - snapshot.drop_fractions) * rows * columns)
        repeats: NDArray[np.bool_] = (kept_counts == 1) & ~snapshot.coarsened
        return repeats if rows * columns > 1 else np.zeros(snapshot.unit_count, np.bool_)

    @property
    def layout(self) -> UnitLayout:
        """Where the tokens of the session's units stand."""
        return self._layout

    def cells(self, units: NDArray[np.int64]) -> Cells:
        """Return each kept token's cell, unit after unit: (sum of token counts, 2) uint16.

        Raises:
            UnitsThinnedError: units lost tokens since; to be met by `meet`, and tried again.
            KVStoreError: they are gone.
        """
        snapshot = self._snapshot
        whole = (snapshot.drop_fractions == 0) & ~snapshot.coarsened  # no cells to look up
        cells = [
            self._layout.whole_cells(int(snapshot.token_counts[unit]))
            if whole[unit]
            else self._reader.cells(snapshot, unit)
            for unit in units.tolist()
        ]
        return np.concatenate([np.empty((0, 2), np.uint16), *cells])

    def meet(self, thinned: UnitsThinnedError) -> None:
        """Go on with the units as they are now: their counts and cells are fewer from here on."""
        self._snapshot = self._snapshot.thinned(thinned.unit_indices, thinned.token_counts)

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the inner product of `query` with each unit's mean key before RoPE.

        Raises:
            RetrievalError: the index was recovered meanwhile, or is short.
        """
        scores = self._index.scores(layer, query, self._snapshot.unit_count)
        scores[: self._snapshot.first_unit] = -np.inf  # their rows stay
        return scores

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return keys before RoPE and values of the units, in the order given.

        They are valid until the next call, and on the CPU; where units are stored quantised and the
        model is on a device of its own, they are decoded there, and are on that.

        Raises:
            UnitsThinnedError: units lost tokens since; to be met by `meet`, and tried again.
            KVStoreError: they are damaged, or their writer was lost before they were durable.
        """
        layout = self._reader.layout
        if layout is not None and layout.quantised and decodes_on(self._device):
            return self._load_encoded(layout, layer, units)
        geometry = self._geometry
        token_count = int(self._snapshot.token_counts[units].sum())
        shape = (token_count, geometry.kv_head_count, geometry.head_dim)
        keys, values = self._kv.take(shape, geometry.storage_dtype)
        self._note(units, self._reader.read(self._snapshot, layer, units.tolist(), keys, values))
        return from_stored(keys, geometry.element), from_stored(values, geometry.element)

    def _load_encoded(
        self, layout: Layout, layer: int, units: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Copy the bytes to the device as they are stored: a half or a quarter of the elements'."""
        counts = self._snapshot.token_counts[units]
        data = self._kv.take_bytes(layout.extent_bytes(int(counts.sum()), len(units)))
        self._note(units, self._reader.read_stored(self._snapshot, layer, units.tolist(), data))
        return decode_units(layout, torch.from_numpy(data).to(self._device), counts)

    def _note(self, units: NDArray[np.int64], tiers: list[Tier]) -> None:
        for unit, tier in zip(units.tolist(), tiers, strict=True):
            self.tiers[unit] = Tier.slowest([tier, self.tiers.get(unit, tier)])
        self.coarsened.update(units[self._snapshot.coarsened[units]].tolist())
