"""Keeps every token."""

from __future__ import annotations

from torch import Tensor

from svc.engine.reduction.base import ReductionState, UnitFeatures, all_tokens


class KeepAll:
    """No reduction: what others are measured against."""

    def choose(self, unit: UnitFeatures, state: ReductionState) -> tuple[Tensor, ReductionState]:
        """Return all tokens."""
        return all_tokens(unit), state
