"""A checkpoint may bring the strengths that suit its features; what it brings is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from svc.engine.errors import UnsupportedModelError
from svc.engine.model import ModelConfig
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.serving import ServingDefaults, model_config, serving_defaults


def defaults_with(folder: Path, presets: Any) -> ServingDefaults:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()  # not read here
    (folder / "lookback.json").write_text(json.dumps({"reduction_presets": presets}))
    return serving_defaults(ModelConfig(path=str(folder)))


def test_a_preset_of_the_checkpoint_goes_before_the_general_one(tmp_path: Path) -> None:
    presets = defaults_with(tmp_path, {"last_kept": {"light": 0.95}}).reduction_presets
    assert ReductionSpec.parse("last_kept:light", presets).strength == 0.95
    assert ReductionSpec.parse("last_kept", presets) == ReductionSpec.parse("last_kept")


@pytest.mark.parametrize(
    "presets",
    [
        7,
        {"last_kept": 0.9},
        {"nope": {"light": 0.9}},
        {"last_kept": {"hard": 0.9}},
        {"last_kept": {"light": 1.5}},
        {"last_kept": {"light": "much"}},
        {"none": {"light": 0.5}},
    ],
)
def test_presets_that_are_none_are_refused(tmp_path: Path, presets: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="reduction_presets"):
        defaults_with(tmp_path, presets)


def test_the_built_in_model_brings_its_own() -> None:
    presets = serving_defaults(model_config("builtin", "float32", "cpu")).reduction_presets
    strengths = [
        ReductionSpec.parse(f"last_kept:{preset}", presets).strength
        for preset in ("light", "balanced", "aggressive")
    ]
    assert strengths == [0.95, 0.7, 0.4]
