"""Drops tokens that resemble what was last kept at their place.

A slow drift adds up against the reference until it is kept, however small its steps; every
`refresh_units` a unit is kept whole, which bounds what the threshold lets through.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from svc.engine.reduction.base import (
    ReductionState,
    UnitFeatures,
    all_tokens,
    below,
    similarity,
)


@dataclass(frozen=True, slots=True)
class LastKept:
    """A token goes if its cosine with the last kept one at its place is above the threshold."""

    threshold: float
    refresh_units: int

    def choose(self, unit: UnitFeatures, state: ReductionState) -> tuple[Tensor, ReductionState]:
        """Return the tokens that differ from what was last kept."""
        age = state.units_since_whole + 1
        if state.reference is None or unit.gap_before or age >= self.refresh_units:
            return all_tokens(unit), ReductionState(reference=unit.embeds)
        kept = below(similarity(state.reference, unit.embeds), self.threshold)
        return kept, ReductionState(
            reference=renewed(state.reference, unit.embeds, kept), units_since_whole=age
        )


def renewed(reference: Tensor, embeds: Tensor, kept: Tensor) -> Tensor:
    """Return the reference with the kept tokens in their places."""
    new = reference.to(embeds.device, copy=True)
    new[kept] = embeds[kept]
    return new
