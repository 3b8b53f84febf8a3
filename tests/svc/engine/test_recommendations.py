"""A checkpoint may bring what was measured with it: strengths and defaults; they are checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from svc.engine.errors import UnsupportedModelError
from svc.engine.model import ModelConfig
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.serving import ServingDefaults, model_config, serving_defaults


def recommending(folder: Path, **values: Any) -> ServingDefaults:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()  # not read here
    (folder / "lookback.json").write_text(json.dumps(values))
    return serving_defaults(ModelConfig(path=str(folder)))


def test_a_preset_of_the_checkpoint_goes_before_the_general_one(tmp_path: Path) -> None:
    presets = recommending(
        tmp_path, reduction_presets={"last_kept": {"light": 0.95}}
    ).reduction_presets
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
        {"last_kept": {"light": "0.9"}},
        {"last_kept": {"light": "balanced"}},
        {"last_kept": {"light": True}},
        {"none": {"light": 0.5}},
    ],
)
def test_presets_that_are_none_are_refused(tmp_path: Path, presets: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="reduction_presets"):
        recommending(tmp_path, reduction_presets=presets)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reduction", "last_kept:hard"),
        ("reduction", "last"),
        ("reduction", 7),
        ("kv_encoding", "int2"),
        ("kv_encoding", 8),
    ],
)
def test_a_default_that_is_none_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(str(value))):
        recommending(tmp_path, **{name: value})


def test_a_model_that_nothing_was_measured_with_keeps_all_as_it_is(tmp_path: Path) -> None:
    defaults = recommending(tmp_path)
    assert (defaults.reduction, defaults.kv_encoding) == ("none", "model")


def test_the_built_in_model_brings_its_own() -> None:
    defaults = serving_defaults(model_config("builtin", "float32", "cpu"))
    specs = [
        ReductionSpec.parse(f"last_kept:{preset}", defaults.reduction_presets)
        for preset in ("light", "balanced", "aggressive")
    ]
    assert [spec.strength for spec in specs] == [0.95, 0.7, 0.5]
    assert ReductionSpec.parse(defaults.reduction, defaults.reduction_presets) == specs[1]
    assert defaults.kv_encoding == "int4"
