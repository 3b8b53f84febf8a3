"""What a question may see: a cut of the session at a count of units."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstore.hotview import HotTailView


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """A session as of `unit_count` units. Arrays are shared between snapshots and read-only."""

    epoch: int
    unit_count: int
    """Visible units, dropped ones included."""
    durable_unit_count: int
    """Of those, the ones that were on the disk."""
    first_pts_s: np.ndarray[Any, Any]
    """(unit_count,) float64."""
    last_pts_s: np.ndarray[Any, Any]
    """(unit_count,) float64, never descending."""
    token_counts: np.ndarray[Any, Any]
    """(unit_count,) int64."""
    position_spans: np.ndarray[Any, Any]
    """(unit_count,) int64."""
    drop_fractions: np.ndarray[Any, Any]
    """(unit_count,) float64."""
    gaps_before: np.ndarray[Any, Any]
    """(unit_count,) bool."""
    coarsened: np.ndarray[Any, Any]
    """(unit_count,) bool: units that lost tokens since they were stored, to make room."""
    first_unit: int = 0
    """Units before it were dropped: they keep their indices, their times may be -inf and their
    counts 0, and they cannot be read. Equal to `unit_count` when nothing is left."""
    hot_tail: HotTailView | None = field(repr=False)
    """The mapping that holds the newest units; kept alive by the snapshot."""

    def __repr__(self) -> str:
        return (
            f"Snapshot(epoch={self.epoch}, units=[{self.first_unit}, {self.unit_count}), "
            f"durable_unit_count={self.durable_unit_count})"
        )

    def thinned(self, unit_indices: Sequence[int], token_counts: Sequence[int]) -> Snapshot:
        """The same cut with fewer tokens of some units, as `UnitsThinnedError` tells them.

        The drop fractions stay as they were at the cut.
        """
        changed = np.asarray(unit_indices, np.int64)
        counts, coarsened = self.token_counts.copy(), self.coarsened.copy()
        counts[changed], coarsened[changed] = token_counts, True
        for column in (counts, coarsened):
            column.flags.writeable = False
        return dataclasses.replace(self, token_counts=counts, coarsened=coarsened)

    def cut(self, unit_count: int) -> Snapshot:
        """The same session as of fewer units.

        Raises:
            ValueError: `unit_count` is negative or more than the snapshot has.
        """
        if not 0 <= unit_count <= self.unit_count:
            raise ValueError(f"unit_count must be in [0, {self.unit_count}], got {unit_count}")
        return dataclasses.replace(
            self,
            unit_count=unit_count,
            durable_unit_count=min(self.durable_unit_count, unit_count),
            first_unit=min(self.first_unit, unit_count),
            first_pts_s=self.first_pts_s[:unit_count],
            last_pts_s=self.last_pts_s[:unit_count],
            token_counts=self.token_counts[:unit_count],
            position_spans=self.position_spans[:unit_count],
            drop_fractions=self.drop_fractions[:unit_count],
            gaps_before=self.gaps_before[:unit_count],
            coarsened=self.coarsened[:unit_count],
        )
