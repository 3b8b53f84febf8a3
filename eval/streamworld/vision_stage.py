"""Stage 1: the vision tower and projector learn what is in a frame.

Visual tokens are compared with the word embeddings themselves: "red" and a red frame come to lie
in the same direction, which the later stages build on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld import vocabulary as words
from eval.streamworld.augment import Augmenter
from eval.streamworld.forward import frame_features
from eval.streamworld.parallel import ParameterGroup
from eval.streamworld.recipe import GRIDS_PX, Recipe
from eval.streamworld.render import FREE_PX, FrameSpec, position_range, render
from eval.streamworld.seeds import torch_seed

_LOGIT_SCALE = 4.0
_FINER_FRACTION = 0.25
_SMOOTHING = 0.1
_SETTLING_STEPS = 20


class VisionHeads(nn.Module):
    """Read-outs of a frame's mean visual token."""

    def __init__(self, hidden: int, *, seed: int) -> None:
        super().__init__()
        self.nothing = nn.Linear(hidden, 1)
        self.place = nn.Linear(hidden, 2)
        self.bias = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(len(group))) for name, group in _WORD_GROUPS.items()}
        )
        generator = torch.Generator().manual_seed(seed)
        for linear in (self.nothing, self.place):
            nn.init.normal_(linear.weight, std=0.05, generator=generator)

    def forward(self, mean: Tensor, embeddings: Tensor) -> dict[str, Tensor]:
        """Logits per attribute of mean tokens [n, hidden]; entity class 0 is an empty scene."""
        logits = {
            name: _LOGIT_SCALE * mean @ embeddings[_WORD_IDS[name]].T + self.bias[name]
            for name in _WORD_GROUPS
        }
        logits["entity"] = torch.cat((self.nothing(mean), logits["entity"]), 1)
        return logits | {"place": self.place(mean)}


_WORD_GROUPS = {
    "entity": words.ENTITIES,
    "colour": words.COLOURS,
    "scene": words.SCENES,
    "direction": words.DIRECTIONS,
}
_WORD_IDS = {name: [words.TOKEN_ID[w] for w in group] for name, group in _WORD_GROUPS.items()}


class GridCurriculum:
    """Refines the position grid 16 > 8 > 4 > 2 > 1 px whenever entities are read well enough."""

    def __init__(self, pass_fraction: float) -> None:
        self.level = 0
        self.accuracy_fraction = 0.0
        self.steps = 0
        self._pass = pass_fraction

    @property
    def grid_px(self) -> int:
        return GRIDS_PX[self.level]

    @property
    def finer_px(self) -> int:
        return GRIDS_PX[min(self.level + 1, len(GRIDS_PX) - 1)]

    @property
    def shipped_grid_px(self) -> int:
        """The grid of the language stages: the finest that is read at > .95 or was passed."""
        return GRIDS_PX[self.level if self.accuracy_fraction > 0.95 else max(0, self.level - 1)]

    def update(self, accuracy_fraction: float) -> bool:
        """Account one step; true when the grid was refined."""
        self.steps += 1
        self.accuracy_fraction += _SMOOTHING * (accuracy_fraction - self.accuracy_fraction)
        if self.accuracy_fraction <= self._pass or self.steps <= _SETTLING_STEPS:
            return False
        if self.level == len(GRIDS_PX) - 1:
            return False
        self.level, self.accuracy_fraction, self.steps = self.level + 1, 0.0, 0
        return True

    def state(self) -> dict[str, float]:
        """What `restore` needs."""
        return {"level": self.level, "accuracy": self.accuracy_fraction, "steps": self.steps}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from `state()`."""
        self.level, self.steps = int(state["level"]), int(state["steps"])
        self.accuracy_fraction = float(state["accuracy"])


def random_frames(
    count: int, grid_px: int, finer_px: int, rng: np.random.Generator
) -> tuple[list[FrameSpec], np.ndarray]:
    """Random frames, a quarter of them on the finer grid (the returned mask)."""
    finer = rng.random(count) < _FINER_FRACTION
    specs = []
    for on_finer in finer:
        grid = finer_px if on_finer else grid_px
        direction = int(rng.integers(len(words.DIRECTIONS)))
        x0, x1, y0, y1 = position_range(direction)
        x, y = (
            int(rng.integers(-(-low // grid), high // grid + 1)) * grid
            for low, high in ((x0, x1), (y0, y1))
        )
        entity = -1 if rng.random() < 0.05 else int(rng.integers(len(words.ENTITIES)))
        specs.append(
            FrameSpec(
                scene=int(rng.integers(len(words.SCENES))), entity=entity,
                colour=int(rng.integers(len(words.COLOURS))), x=x, y=y, direction=direction,
            )
        )  # fmt: skip
    return specs, finer


class VisionStage:
    """The stage as the trainer runs it."""

    name = "vision"

    def __init__(
        self, model: LlavaOnevisionForConditionalGeneration, recipe: Recipe, augment: Augmenter
    ) -> None:
        text: Any = model.config.text_config
        self.heads = VisionHeads(text.hidden_size, seed=1)
        self.curriculum = GridCurriculum(recipe.vision_pass_fraction)
        self._model, self._recipe, self._augment = model, recipe, augment

    @property
    def steps(self) -> int:
        return self._recipe.vision_steps

    def groups(self) -> list[ParameterGroup]:
        """Tower, projector, read-outs and the word embeddings they share with the decoder."""
        inner = self._model.model
        parts = (inner.vision_tower, inner.multi_modal_projector, self.heads)
        parameters = [p for part in parts for p in part.parameters()]
        return [ParameterGroup([*parameters, inner.language_model.embed_tokens.weight], 1.0)]

    def rate(self, step: int, fraction: float) -> float:
        """Warm-up, flat for three fifths, then cosine down to 3 %."""
        decay = 1.0
        if fraction > 0.6:
            decay = 0.03 + 0.97 * (0.5 + 0.5 * math.cos(math.pi * (fraction - 0.6) / 0.4))
        return self._recipe.vision_rate * min(1.0, (step + 1) / 50) * decay

    def loss(
        self, fraction: float, rng: np.random.Generator, shared: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """One batch's loss and figures; `accuracy` drives the grid curriculum."""
        loss, figures = vision_step(
            self._model, self.heads, self.curriculum, self._recipe.vision_batch, self._augment, rng
        )
        return loss, figures | {"accuracy": figures["entity"]}

    def after(self, accuracy_fraction: float) -> bool:
        """Refine the grid when due; this stage never ends early."""
        self.curriculum.update(accuracy_fraction)
        return False

    def status(self) -> dict[str, float]:
        """Figures for the progress line."""
        return {"grid_px": self.curriculum.grid_px, "smoothed": self.curriculum.accuracy_fraction}

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside model and optimizer."""
        return {"heads": self.heads.state_dict(), "curriculum": self.curriculum.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.heads.load_state_dict(state["heads"])
        self.curriculum.restore(state["curriculum"])


def vision_step(
    model: LlavaOnevisionForConditionalGeneration,
    heads: VisionHeads,
    curriculum: GridCurriculum,
    batch: int,
    augment: Augmenter,
    rng: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """One batch: the loss, and accuracies: `entity` at the current grid, `finer` at the next."""
    specs, finer = random_frames(batch, curriculum.grid_px, curriculum.finer_px, rng)
    damage = torch.Generator().manual_seed(torch_seed(rng))
    images = augment(torch.from_numpy(render(specs)), damage)
    target = {name: torch.tensor([getattr(spec, name) for spec in specs]) for name in _WORD_GROUPS}
    target["entity"] = target["entity"] + 1
    shown = target["entity"] > 0
    place = torch.tensor([(spec.x, spec.y) for spec in specs]) / (FREE_PX / 2) - 1
    mean = frame_features(model, images).mean(1)
    out = heads(mean, model.model.language_model.embed_tokens.weight)
    loss = F.cross_entropy(out["entity"], target["entity"])
    loss = loss + F.cross_entropy(out["scene"], target["scene"])
    for name in ("colour", "direction"):
        loss = loss + F.cross_entropy(out[name][shown], target[name][shown])
    loss = loss + 2 * F.mse_loss(out["place"][shown], place[shown])
    right = {name: (out[name].argmax(-1) == target[name]).float() for name in _WORD_GROUPS}
    on_finer = torch.from_numpy(finer)
    figures = {name: float(r[shown].mean()) for name, r in right.items()}
    figures["entity"] = float(right["entity"][shown & ~on_finer].mean())
    figures["finer"] = float(right["entity"][shown & on_finer].mean().nan_to_num())
    return loss, figures | {"loss": float(loss.detach())}
