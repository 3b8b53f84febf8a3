"""`lookback models` says what a model is before anything is loaded, and what loading then finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvstore.encoding import Layout
from kvstore.geometry import Geometry
from svc.engine.adapters.base import StreamShape
from svc.engine.model import ModelConfig, load_model
from svc.engine.model_facts import model_facts
from tests.svc.engine.tiny import build_tiny_checkpoint
from tests.svc.engine.tiny_qwen import build_qwen3, build_qwen25


def lookback(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svc.cli", "models", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("build", [build_tiny_checkpoint, build_qwen25, build_qwen3])
def test_what_is_said_is_what_loading_finds(build: Any, tmp_path: Path) -> None:
    config = ModelConfig(path=str(build(tmp_path)))
    facts = model_facts(config, StreamShape(sample_fps=2.0))
    seeing, answering = load_model(config, vision=True), load_model(config, vision=False)
    adapter = seeing.adapter.shaped(StreamShape(sample_fps=2.0))
    assert facts.family == adapter.family
    assert facts.tokens_per_unit == adapter.tokens_per_unit
    assert (facts.frame_height, facts.frame_width) == (adapter.frame_height, adapter.frame_width)
    sizes = [
        sum(parameter.nbytes for parameter in model.hf_model.parameters())
        for model in (seeing, answering)
    ]
    assert [facts.ingest_weight_bytes, facts.qa_weight_bytes] == sizes
    geometry = Geometry(layer_count=3, kv_head_count=2, head_dim=16, element="float32")
    units = 7200 // adapter.frames_per_unit
    hour = 3 * Layout(geometry, "int4").extent_bytes(units * adapter.tokens_per_unit, units)
    assert facts.kv_bytes_per_hour["int4"] == hour


def test_a_model_that_is_not_supported_is_told_with_the_reason(tmp_path: Path) -> None:
    build_tiny_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["layer_types"] = ["sliding_attention"] * 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = lookback(str(tmp_path))
    assert told.returncode == 1
    assert "not supported" in told.stdout
    as_json = lookback(str(tmp_path), "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["supported"] is False


def test_the_built_in_model_is_told_and_a_folder_that_is_none_refused(tmp_path: Path) -> None:
    told = lookback("--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["family"] == "llava_onevision"
    none = lookback(str(tmp_path))
    assert none.returncode == 1
    assert none.stderr.startswith("error: NOT_A_MODEL")
    assert "Traceback" not in none.stderr
