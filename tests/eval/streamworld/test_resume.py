"""A run that was killed and resumed ends in the state of one that was not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.streamworld.recipe import Recipe
from eval.streamworld.trainer import CURVES_FILE, STATE_FILE, Run, Trainer

RECIPE = Recipe(
    vision_steps=3, vision_batch=12, drill_steps=2, general_steps=3, memory_steps=2,
    save_every_s=0.0, log_every_steps=1,
)  # fmt: skip
SIZES = {
    "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 32, "vision_hidden": 16,
    "vision_layers": 1, "vision_mlp": 16, "vision_heads": 1,
}  # fmt: skip


def _run(directory: Path, stop_after_steps: int | None = None) -> Run:
    directory.mkdir(exist_ok=True)
    return Run(
        directory=directory, seed=7, recipe=RECIPE, model_sizes=SIZES,
        stop_after_steps=stop_after_steps,
    )  # fmt: skip


def _state(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(directory / STATE_FILE, weights_only=False)
    return loaded


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("whole")
    Trainer(_run(directory)).train()
    return _state(directory)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("steps_before_kill", [1, 3, 4, 6, 9])
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, uninterrupted: dict[str, Any], steps_before_kill: int
) -> None:
    Trainer(_run(tmp_path, stop_after_steps=steps_before_kill)).train()
    (tmp_path / STATE_FILE).with_suffix(".partial").write_bytes(b"torn")
    resumed = Trainer(_run(tmp_path))
    resumed.load()
    resumed.train()
    state = _state(tmp_path)
    assert state["stage_index"] == uninterrupted["stage_index"] == 4
    for name, weight in uninterrupted["model"].items():
        assert torch.equal(state["model"][name], weight), name


def test_work_after_the_last_checkpoint_is_done_again_alike(
    tmp_path: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(_run(tmp_path))
    real_save, saves = Trainer._save, 0

    def save_until_killed(self: Trainer, optimizer: Any, stage: Any) -> None:
        nonlocal saves
        saves += 1
        if saves > 4:
            raise _Killed
        real_save(self, optimizer, stage)

    monkeypatch.setattr(Trainer, "_save", save_until_killed)
    with pytest.raises(_Killed):
        trainer.train()
    monkeypatch.undo()
    resumed = Trainer(_run(tmp_path))
    resumed.load()
    resumed.train()
    for name, weight in uninterrupted["model"].items():
        assert torch.equal(_state(tmp_path)["model"][name], weight), name


def test_curves_hold_a_line_per_logged_step_and_stage(tmp_path: Path) -> None:
    Trainer(_run(tmp_path)).train()
    lines = [json.loads(x) for x in (tmp_path / CURVES_FILE).read_text().splitlines()]
    stages = {"vision": 3, "drill": 2, "general": 3, "memory": 2}
    assert Counter(line["stage"] for line in lines) == stages


def test_a_killed_trainer_leaves_no_process_that_trains_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eval.streamworld", "train", "--processes", "2"]
    trainer = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")], stdout=subprocess.DEVNULL
    )
    try:
        children = Path(f"/proc/{trainer.pid}/task/{trainer.pid}/children")
        workers: list[Path] = []
        while len(workers) < 2:
            assert trainer.poll() is None
            workers = [
                Path(f"/proc/{pid}")
                for pid in children.read_text().split()
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            time.sleep(0.05)
    finally:
        trainer.kill()
        trainer.wait()
    deadline = time.monotonic() + 60
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < deadline, "the workers outlived the trainer"
        time.sleep(0.05)
