"""Stages 2 and 3: the decoder learns to find and read; then everything at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.augment import Augmenter
from eval.streamworld.batches import BatchPlan, make_batch
from eval.streamworld.dropping import dropped
from eval.streamworld.forward import frame_features
from eval.streamworld.losses import answer_loss, retrieval_loss, run_batch
from eval.streamworld.parallel import ParameterGroup
from eval.streamworld.recipe import Recipe
from eval.streamworld.wording import Kind
from eval.streamworld.world import Pace

WARM_UP_STEPS = 40
# share of the general stage in which most batches drill one skill
_SKILLS_FIRST = 0.45
_DRILL_SMOOTHING = 0.05
GENERAL_KINDS: dict[Kind, float] = {
    "now_what": 1.0, "now_object": 0.5, "now_colour": 0.4, "now_scene": 0.4,
    "past_colour": 1.2, "past_object": 1.3, "past_scene": 1.2, "past_text": 1.2,
    "motion": 1.2, "count": 1.2, "order": 1.0, "not_seen": 1.5,
}  # fmt: skip

# what long streams make hard, once the rest is learned
HARD_KINDS: dict[Kind, float] = {"not_seen": 2.2, "count": 2.0, "order": 2.2}


class LanguageStage:
    """What drill, general and memory stage share."""

    name = ""

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        recipe: Recipe,
        augment: Augmenter,
        *,
        grid_px: int,
    ) -> None:
        self._model, self._recipe, self._augment = model, recipe, augment
        self._grid_px = grid_px

    def groups(self) -> list[ParameterGroup]:
        """All parameters, tower and projector at a lower rate."""
        inner = self._model.model
        seeing = [*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters()]
        ids = {id(p) for p in seeing}
        rest = [p for p in self._model.parameters() if id(p) not in ids]
        return [
            ParameterGroup(rest, 1.0),
            ParameterGroup(seeing, self._recipe.vision_rate_factor),
        ]

    def plan(self, fraction: float, shared: np.random.Generator) -> BatchPlan:
        """What the next batch holds, `fraction` of the way through the stage."""
        raise NotImplementedError

    def loss(
        self, fraction: float, rng: np.random.Generator, shared: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """One batch's loss and figures."""
        plan = self.plan(fraction, shared)
        batch = make_batch(plan, grid_px=self._grid_px, augment=self._augment, rng=rng)
        features = frame_features(self._model, batch.images)
        batch = dropped(batch, features)
        logits, scores = run_batch(self._model, batch, features)
        answers, by_kind = answer_loss(logits, batch)
        finding, hit_fraction = retrieval_loss(scores, batch)
        exact = [x for values in by_kind.values() for x in values]
        figures = {kind: float(np.mean(values)) for kind, values in by_kind.items()}
        figures |= {
            "accuracy": float(np.mean(exact)), "all": float(np.mean(exact)),
            "loss": float(answers.detach()), "retrieval": float(finding.detach()),
            "hit": hit_fraction, "questions": len(exact), "frames": plan.frames,
        }  # fmt: skip
        return answers + self._recipe.retrieval_weight * finding, figures

    def after(self, accuracy_fraction: float) -> bool:
        """Whether the stage is over early."""
        return False

    def status(self) -> dict[str, float]:
        """Figures for the progress line."""
        return {}

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside model and optimizer."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""


class DrillStage(LanguageStage):
    """A few frames, one event each, colours and objects: matching a word to a frame clicks here.

    Ended by accuracy. Without it the general stage sits on a plateau of plausible guesses.
    """

    name = "drill"

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        recipe: Recipe,
        augment: Augmenter,
        *,
        grid_px: int,
    ) -> None:
        super().__init__(model, recipe, augment, grid_px=grid_px)
        self._accuracy = 0.0

    @property
    def steps(self) -> int:
        return self._recipe.drill_steps

    def rate(self, step: int, fraction: float) -> float:
        """Warm-up, then flat."""
        return self._recipe.language_rate * min(1.0, (step + 1) / WARM_UP_STEPS)

    def plan(self, fraction: float, shared: np.random.Generator) -> BatchPlan:
        """1 to 3 frames at first, then 2 to 6, all of them visible."""
        frames = int(shared.integers(1, 4) if fraction < 0.15 else shared.integers(2, 7))
        return BatchPlan(
            clips=10, frames=frames, questions=6, pace=Pace(duration=(1, 1), gap=(0, 0)),
            kinds={"past_colour": 1.0, "past_object": 1.0}, late=0.3, picked=frames,
        )  # fmt: skip

    def after(self, accuracy_fraction: float) -> bool:
        """Whether the smoothed accuracy is reached."""
        self._accuracy += _DRILL_SMOOTHING * (accuracy_fraction - self._accuracy)
        return self._accuracy > self._recipe.drill_stop_fraction

    def status(self) -> dict[str, float]:
        return {"smoothed": self._accuracy}

    def state(self) -> dict[str, Any]:
        return {"accuracy": self._accuracy}

    def restore(self, state: dict[str, Any]) -> None:
        self._accuracy = float(state["accuracy"])


class GeneralStage(LanguageStage):
    """Every kind on clips that grow, seen as serving shows them: top-k frames in every layer."""

    name = "general"

    @property
    def steps(self) -> int:
        return self._recipe.general_steps

    def rate(self, step: int, fraction: float) -> float:
        """Warm-up, flat for 45 %, then cosine down to 2 %."""
        decay = 1.0
        if fraction > 0.45:
            decay = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * (fraction - 0.45) / 0.55))
        return self._recipe.language_rate * min(1.0, (step + 1) / WARM_UP_STEPS) * decay

    def plan(self, fraction: float, shared: np.random.Generator) -> BatchPlan:
        """Short drills of one skill among clips whose length grows to 48 frames.

        Half as many clips in the first half: early on, more steps teach more than larger ones.
        """
        plan = self._whole_plan(fraction, shared)
        return replace(plan, clips=-(-plan.clips // 2)) if fraction < 0.5 else plan

    def _whole_plan(self, fraction: float, shared: np.random.Generator) -> BatchPlan:
        # skills first, on short clips; then length and look-alikes
        growth = min(1.0, max(0.0, (fraction - _SKILLS_FIRST) / 0.3))
        longest = int(10 + 38 * growth)
        if shared.random() < (0.8 if fraction < _SKILLS_FIRST else 0.3 - 0.15 * growth):
            return self.skill_drill(longest, shared)
        recent = int(shared.choice([1, 1, 1, 2, 4]))
        look_alikes = shared.random() < 0.15 + 0.6 * growth
        kinds = GENERAL_KINDS if growth < 0.3 else GENERAL_KINDS | HARD_KINDS
        common: dict[str, Any] = {
            "kinds": kinds, "late": 0.4, "recent": recent, "drop_fraction": 0.3,
            "window_frames": (None, 8, 16)[int(shared.integers(3))],
            "pool": int(shared.integers(4, 10)) if shared.random() < 0.4 else None,
            "counted_fraction": 0.8,
        }  # fmt: skip
        retrieved = recent + int(shared.integers(5, 12))
        if shared.random() < 0.4 * growth:
            # as slow as a real stream: many frames of one event, few events in context
            return BatchPlan(
                clips=2, frames=int(shared.integers(48, 97)), questions=20, picked=retrieved,
                pace=Pace(duration=(4, 12), gap=(0, 4)), unanswerable_fraction=0.2,
                shared_history=look_alikes, **common,
            )  # fmt: skip
        frames = int(shared.integers(4, longest + 1))
        everything = frames <= 12 and shared.random() < 0.3
        short = frames <= 18
        return BatchPlan(
            clips=6 if short else 3, frames=frames, questions=10 if short else 16,
            pace=Pace(duration=(1, 6), gap=(0, 2)) if short else Pace(duration=(1, 8), gap=(0, 3)),
            picked=frames if everything else retrieved, subset_fraction=0.15,
            unanswerable_fraction=0.15, shared_history=look_alikes and not everything, **common,
        )  # fmt: skip

    @staticmethod
    def skill_drill(longest: int, shared: np.random.Generator) -> BatchPlan:
        skill = int(shared.choice(5, p=[0.25, 0.22, 0.1, 0.18, 0.25]))
        still = Pace(duration=(1, 1), gap=(0, 0))
        if skill == 0:
            frames = int(shared.integers(2, max(7, longest // 3)))
            kinds: dict[Kind, float] = {
                "past_colour": 1, "past_object": 1, "past_scene": 1, "past_text": 1, "not_seen": 1,
            }  # fmt: skip
            return BatchPlan(
                clips=10, frames=frames, questions=6, pace=still, kinds=kinds, late=0.3,
                picked=min(frames, 9),
            )  # fmt: skip
        if skill == 1:
            frames = int(shared.integers(5, 10))
            return BatchPlan(
                clips=8, frames=frames, questions=4, pace=Pace(duration=(4, 5), gap=(0, 0)),
                kinds={"motion": 1}, late=0.3, picked=frames,
            )  # fmt: skip
        if skill == 2:
            return BatchPlan(
                clips=10, frames=int(shared.integers(1, 5)), questions=6,
                pace=Pace(duration=(1, 2), gap=(0, 1)), late=0.3, picked=9,
                kinds={"now_what": 2, "now_object": 2, "now_colour": 1, "now_scene": 1},
            )  # fmt: skip
        if skill == 3:
            frames = int(shared.integers(2, 13))
            return BatchPlan(
                clips=10, frames=frames, questions=6, pace=still, kinds={"count": 1, "order": 1},
                late=0.15, picked=frames, pool=int(shared.integers(2, 7)), counted_fraction=0.9,
            )  # fmt: skip
        frames = int(shared.integers(1, 5))
        return BatchPlan(
            clips=12, frames=frames, questions=5, pace=still, late=0.3, picked=frames,
            kinds={"now_scene": 1, "past_scene": 1},
        )  # fmt: skip
