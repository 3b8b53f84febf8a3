"""A fixed share of tokens: keyframes whole, and of the other units the most novel ones.

Source: the keyframe and a keep rate for the rest are EVAD's, Chen et al., arXiv:2304.08451. Its
importance is attention between frames, which the vision towers served here do not have; novelty
against what was last kept at a place stands for it. What a stream takes is known beforehand, but
for its scene changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from svc.engine.reduction.base import (
    ReductionState,
    UnitFeatures,
    all_tokens,
    similarity,
    smallest,
)
from svc.engine.reduction.last_kept import renewed


@dataclass(frozen=True, slots=True)
class Budget:
    """Keyframes at scene changes and every so many units; of the rest a share."""

    share: float
    """Of the tokens of a unit that is no keyframe, in (0, 1]."""
    scene_similarity: float
    """A unit whose mean cosine with what was last kept is below it begins a scene."""
    keyframe_units: int
    """At the latest every so many units one is a keyframe."""

    def choose(self, unit: UnitFeatures, state: ReductionState) -> tuple[Tensor, ReductionState]:
        """Return all tokens of a keyframe, or the most novel ones."""
        whole = all_tokens(unit), ReductionState(reference=unit.embeds)
        age = state.units_since_whole + 1
        if state.reference is None or unit.gap_before or age >= self.keyframe_units:
            return whole
        alike = similarity(state.reference, unit.embeds)
        if float(alike.mean()) < self.scene_similarity:
            return whole
        kept = smallest(alike, self.share)
        return kept, ReductionState(
            reference=renewed(state.reference, unit.embeds, kept), units_since_whole=age
        )
