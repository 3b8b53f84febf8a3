"""Differential token dropping: tokens that resemble the unit before at their place are dropped.

Source: Yao et al., TimeChat-Online, arXiv:2504.17343, section 3.2, with one absolute threshold for
all units. The unit before is taken whole, dropped tokens included, so a change whose every step is
below the threshold is never kept: `last_kept` mends that.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from svc.engine.reduction.base import (
    ReductionState,
    UnitFeatures,
    all_tokens,
    below,
    similarity,
)


@dataclass(frozen=True, slots=True)
class DifferentialDrop:
    """Compares features: a token goes if its cosine with the one before is above the threshold."""

    threshold: float

    def choose(self, unit: UnitFeatures, state: ReductionState) -> tuple[Tensor, ReductionState]:
        """Return the tokens that changed since the unit before."""
        after = ReductionState(reference=unit.embeds)
        if state.reference is None or unit.gap_before:
            return all_tokens(unit), after
        return below(similarity(state.reference, unit.embeds), self.threshold), after


@dataclass(frozen=True, slots=True)
class PixelDrop:
    """Compares pixels: a token goes if its cell's mean absolute difference is below the threshold.

    The difference is of values in [0, 1], between the first frame of the unit before and the last
    frame of this one.
    """

    threshold: float

    def choose(self, unit: UnitFeatures, state: ReductionState) -> tuple[Tensor, ReductionState]:
        """Return the tokens whose pixels changed since the unit before."""
        pixels = unit.pixels()
        after = ReductionState(reference=pixels[0])
        if state.reference is None or unit.gap_before:
            return all_tokens(unit), after
        difference = (pixels[-1] - state.reference).abs().mean(dim=0)
        cells = adaptive_avg_pool2d(difference[None], unit.grid).flatten()
        return below(-cells, -self.threshold), after
