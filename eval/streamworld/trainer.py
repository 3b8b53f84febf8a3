"""The training run: stages one after another, checkpoints, resume.

Every step's data is a function of (seed, stage, step, process) alone, so a run that was killed and
resumed goes on exactly as one that was not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.augment import Augmenter
from eval.streamworld.language_stage import DrillStage, GeneralStage
from eval.streamworld.memory_stage import MemoryStage
from eval.streamworld.model import build, config
from eval.streamworld.parallel import GradientAverager, ParameterGroup
from eval.streamworld.recipe import GRIDS_PX, Recipe
from eval.streamworld.seeds import generator
from eval.streamworld.vision_stage import VisionStage

STATE_FILE = "state.pt"
CURVES_FILE = "curves.jsonl"
STAGES = ("vision", "drill", "general", "memory")
# share of a limited run's time that each stage may take
_TIME_SHARE = {"vision": 0.18, "drill": 0.05, "general": 0.45, "memory": 0.32}
_SHARED_DRAWS = 1_000_000


class Stage(Protocol):
    """What the trainer runs."""

    name: str

    @property
    def steps(self) -> int: ...
    def groups(self) -> list[ParameterGroup]: ...
    def rate(self, step: int, fraction: float) -> float: ...
    def loss(
        self, fraction: float, rng: np.random.Generator, shared: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]: ...
    def after(self, accuracy_fraction: float) -> bool: ...
    def status(self) -> dict[str, float]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        directory: Where state and curves are kept.
        seed: Seed of everything.
        recipe: Lengths and rates.
        minutes: Most minutes of training time in all, or None: lengths in steps only.
        model_sizes: Overrides of `model.config`.
        stop_after_steps: End the process after so many steps, for tests of resuming.
        start: An exported checkpoint that has been through all stages but the last: only that one
            runs, with its weights.
    """

    directory: Path
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    minutes: float | None = None
    model_sizes: dict[str, int] | None = None
    stop_after_steps: int | None = None
    start: Path | None = None


class Trainer:
    """Runs the stages of one process; process 0 logs and saves."""

    def __init__(self, run: Run, *, rank: int = 0) -> None:
        self.run, self._rank = run, rank
        self.model: LlavaOnevisionForConditionalGeneration = build(
            config(**(run.model_sizes or {})), seed=run.seed
        )
        self._augment = Augmenter(seed=run.seed)
        self._stage_index, self._step = 0, 0
        self._stage_elapsed_s, self.grid_px = 0.0, 16
        self._steps_taken = 0
        self._saved: dict[str, Any] | None = None
        if run.start is not None:
            weights = LlavaOnevisionForConditionalGeneration.from_pretrained(
                run.start, dtype=torch.float32
            )
            self.model.load_state_dict(weights.state_dict())
            self._stage_index, self.grid_px = len(STAGES) - 1, GRIDS_PX[-1]

    @property
    def _path(self) -> Path:
        return self.run.directory / STATE_FILE

    def load(self) -> None:
        """Take up the run where its last checkpoint left it."""
        saved = read_state(self.run.directory)
        self.model.load_state_dict(saved["model"])
        self._stage_index, self._step = saved["stage_index"], saved["step"]
        self._stage_elapsed_s, self.grid_px = saved["stage_elapsed_s"], saved["grid_px"]
        self._saved = saved

    def train(self) -> None:
        """Run every stage that is left."""
        while self._stage_index < len(STAGES):
            stage = self._make_stage()
            if not self._run_stage(stage):
                return
            if isinstance(stage, VisionStage):
                self.grid_px = stage.curriculum.shipped_grid_px
            self._stage_index, self._step, self._stage_elapsed_s = self._stage_index + 1, 0, 0.0
            self._save(None, None)

    def _make_stage(self) -> Stage:
        recipe = self.run.recipe
        name = STAGES[self._stage_index]
        if name == "vision":
            return VisionStage(self.model, recipe, self._augment)
        if name == "drill":
            return DrillStage(self.model, recipe, self._augment, grid_px=self.grid_px)
        if name == "general":
            return GeneralStage(self.model, recipe, self._augment, grid_px=self.grid_px)
        return MemoryStage(self.model, recipe, self._augment, grid_px=self.grid_px)

    def _optimizer(self, groups: list[ParameterGroup]) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            [{"params": g.parameters, "rate_factor": g.rate_factor} for g in groups],
            lr=0.0, betas=(0.9, 0.98), weight_decay=self.run.recipe.weight_decay,
        )  # fmt: skip

    def _fraction(self, stage: Stage) -> float:
        fraction = self._step / stage.steps
        if self.run.minutes is not None:
            limit_s = self.run.minutes * 60 * _TIME_SHARE[stage.name]
            fraction = max(fraction, self._stage_elapsed_s / limit_s)
        return fraction

    def _run_stage(self, stage: Stage) -> bool:
        """Run to the stage's end; false when the run was told to stop before it."""
        groups = stage.groups()
        optimizer = self._optimizer(groups)
        if self._saved is not None and self._saved["optimizer"] is not None:
            optimizer.load_state_dict(self._saved["optimizer"])
            stage.restore(self._saved["stage"])
        self._saved = None
        parameters = [p for g in groups for p in g.parameters]
        average = GradientAverager(parameters, figures=2)
        history: dict[str, list[float]] = defaultdict(list)
        begun, before_s = time.monotonic(), self._stage_elapsed_s
        saved_at = begun
        while (fraction := self._fraction(stage)) < 1:
            if self._steps_taken == self.run.stop_after_steps:
                self._save(optimizer, stage)
                return False
            rate = stage.rate(self._step, fraction)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]
            index = (self._stage_index, self._step)
            loss, figures = stage.loss(
                fraction,
                generator("training", self.run.seed, *index, self._rank),
                generator("training", self.run.seed, *index, _SHARED_DRAWS),
            )
            loss.backward()  # type: ignore[no-untyped-call]
            elapsed_s, accuracy = average(
                before_s + time.monotonic() - begun, figures.pop("accuracy")
            )
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self._stage_elapsed_s = elapsed_s
            self._step += 1
            self._steps_taken += 1
            ended = stage.after(accuracy)
            for name, value in figures.items():
                history[name].append(value)
            if self._step % self.run.recipe.log_every_steps == 0:
                self._log(stage, rate, history)
                history.clear()
            if time.monotonic() - saved_at > self.run.recipe.save_every_s:
                self._save(optimizer, stage)
                saved_at = time.monotonic()
            if ended:
                break
        return True

    def _save(self, optimizer: torch.optim.Optimizer | None, stage: Stage | None) -> None:
        if self._rank != 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "stage": None if stage is None else stage.state(),
            "stage_index": self._stage_index,
            "step": self._step,
            "stage_elapsed_s": self._stage_elapsed_s,
            "grid_px": self.grid_px,
            "seed": self.run.seed,
            "model_sizes": self.run.model_sizes,
            "recipe": asdict(self.run.recipe),
        }
        partial = self._path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self._path)

    def _log(self, stage: Stage, rate: float, history: dict[str, list[float]]) -> None:
        if self._rank != 0:
            return
        means = {name: float(np.nanmean(values)) for name, values in sorted(history.items())}
        line = {
            "stage": stage.name, "step": self._step, "elapsed_s": round(self._stage_elapsed_s, 1),
            "rate": rate, **stage.status(), **means,
        }  # fmt: skip
        with (self.run.directory / CURVES_FILE).open("a") as curves:
            curves.write(json.dumps(line) + "\n")
        shown = " ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()
        )
        sys.stdout.write(shown + "\n")
        sys.stdout.flush()


def read_state(directory: Path) -> dict[str, Any]:
    """The last checkpoint of the run in `directory`."""
    saved: dict[str, Any] = torch.load(directory / STATE_FILE, weights_only=False)
    return saved


def resumed_recipe(directory: Path, **changes: Any) -> Recipe:
    """The recipe of the run in `directory`, with `changes` made."""
    return replace(Recipe(**read_state(directory)["recipe"]), **changes)


def trained_model(directory: Path) -> LlavaOnevisionForConditionalGeneration:
    """The model of the run in `directory` as of its last checkpoint, float32."""
    saved = read_state(directory)
    model = build(config(**(saved["model_sizes"] or {})), seed=saved["seed"])
    model.load_state_dict(saved["model"])
    return model
