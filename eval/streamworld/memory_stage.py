"""Stage 4: the decoder learns to answer from what a long stream leaves in memory.

Clips as slow as real streams, stored as the service stores them by default: without the tokens
that repeat what was kept before. Questions may follow others in a conversation.
"""

from __future__ import annotations

import math

import numpy as np
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.augment import Augmenter
from eval.streamworld.batches import BatchPlan
from eval.streamworld.language_stage import (
    GENERAL_KINDS,
    HARD_KINDS,
    WARM_UP_STEPS,
    GeneralStage,
    LanguageStage,
)
from eval.streamworld.parallel import ParameterGroup
from eval.streamworld.recipe import Recipe
from eval.streamworld.world import Pace

_SKILL_FRACTION = 0.15
_PACES = (
    Pace(duration=(1, 6), gap=(0, 3)),
    Pace(duration=(2, 10), gap=(0, 4)),
    Pace(duration=(6, 20), gap=(0, 6)),
)
_COSINES = (None, 0.95, 0.7, 0.7, 0.5, 0.4)
"""What is dropped of a clip: nothing, or by one of these."""


class MemoryStage(LanguageStage):
    """Reduced, slow clips and conversations; what the vision tower makes of frames stays as it is,
    and with it what a cosine drops."""

    name = "memory"

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        recipe: Recipe,
        augment: Augmenter,
        *,
        grid_px: int,
    ) -> None:
        super().__init__(model, recipe, augment, grid_px=grid_px)
        inner = model.model
        self._seeing = [*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters()]
        for parameter in self._seeing:
            parameter.requires_grad_(False)

    @property
    def steps(self) -> int:
        return self._recipe.memory_steps

    def groups(self) -> list[ParameterGroup]:
        """The decoder's parameters."""
        return [ParameterGroup([p for p in self._model.parameters() if p.requires_grad], 1.0)]

    def rate(self, step: int, fraction: float) -> float:
        """Warm-up, then cosine down to 2 %."""
        decay = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * fraction))
        return self._recipe.memory_rate * min(1.0, (step + 1) / WARM_UP_STEPS) * decay

    def plan(self, fraction: float, shared: np.random.Generator) -> BatchPlan:
        """Mostly clips of 24 to 96 frames; now and then a short drill, so that nothing is lost."""
        if shared.random() < _SKILL_FRACTION:
            return GeneralStage.skill_drill(48, shared)
        frames = int(shared.integers(24, 97))
        pace = _PACES[int(shared.integers(len(_PACES)))]
        return BatchPlan(
            clips=2 if frames > 48 else 4, frames=frames, questions=16, pace=pace,
            kinds=GENERAL_KINDS | HARD_KINDS, late=0.4, window_frames=16,
            picked=1 + int(shared.integers(5, 12)),
            drop_cosine=_COSINES[int(shared.integers(len(_COSINES)))],
            unanswerable_fraction=0.2, shared_history=shared.random() < 0.6,
            pool=int(shared.integers(4, 10)) if shared.random() < 0.4 else None,
            counted_fraction=0.8, turns_fraction=0.2,
        )  # fmt: skip
