"""A checkpoint is loaded exactly, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from svc.engine.errors import NotAModelError, UnsupportedModelError
from svc.engine.model import LoadedModel, ModelConfig, check_text_config, load_model
from tests.svc.engine.streams import frames
from tests.svc.engine.tiny import LAYER_COUNT, build_tiny_checkpoint

Models = Callable[[str], LoadedModel]


@pytest.fixture
def copied(tiny_path: Path, tmp_path: Path) -> Path:
    """A checkpoint folder that may be damaged."""
    return shutil.copytree(tiny_path, tmp_path / "copied")


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def load(path: Path, *, vision: bool = False) -> LoadedModel:
    return load_model(ModelConfig(path=str(path)), vision=vision)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_numbers_of_the_model_are_those_of_its_configuration(
    tiny_model: Models, dtype: str
) -> None:
    model = tiny_model(dtype)
    assert (model.layer_count, model.kv_head_count, model.head_dim) == (LAYER_COUNT, 2, 16)
    assert model.element == dtype
    assert model.prefix.keys.dtype == getattr(torch, dtype)
    assert model.prefix.keys.shape == (LAYER_COUNT, 2, len(model.prompt.prefix_ids), 16)
    assert model.generation_config.eos_token_id == model.tokenizer.eos_token_id


def test_a_model_that_only_answers_holds_no_vision_weights(tiny_path: Path) -> None:
    answering, watching = load(tiny_path), load(tiny_path, vision=True)
    names = [name for name, _ in answering.hf_model.named_parameters()]
    assert not [name for name in names if "vision" in name or "projector" in name]
    assert [n for n, _ in watching.hf_model.named_parameters() if "vision" in n]
    ids = answering.prompt.question("What?").token_ids
    newline_first = answering.adapter.question_embeds(ids)
    assert torch.equal(newline_first, watching.adapter.question_embeds(ids))
    with pytest.raises(RuntimeError, match="vision=False"):
        answering.adapter.encode(answering.adapter.preprocess(frames(1)), [0.0])


def test_the_digest_changes_with_weights_and_configuration_and_nothing_else(
    tiny_path: Path, copied: Path
) -> None:
    digest = load(tiny_path).digest
    assert load(copied).digest == digest
    edit(copied / "generation_config.json", lambda c: c.update(temperature=0.5))
    assert load(copied).digest == digest
    mean = {"image_mean": [0.5, 0.5, 0.5]}
    edit(copied / "video_preprocessor_config.json", lambda c: c.update(mean))
    other_pixels = load(copied).digest
    weights = load_file(copied / "model.safetensors")
    weights["image_newline"][0] += 1
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert len({digest, other_pixels, load(copied).digest}) == 3


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all"])
def test_a_path_that_leads_nowhere_is_no_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotAModelError, match=r"looked for .*config\.json") as caught:
        load_model(ModelConfig(path=name), vision=False)
    assert caught.value.path == name


def test_a_folder_without_a_models_files_is_no_model(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAModelError, match=r"config\.json"):
        load(tmp_path / "empty")
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(NotAModelError, match=r"model\.safetensors"):
        load(copied)


def test_weights_that_are_missing_are_not_made_up(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("1.self_attn.k_proj.weight"))]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"1 weights are missing.*k_proj"):
        load(copied)


def test_a_family_without_an_adapter_is_refused(copied: Path) -> None:
    edit(copied / "config.json", lambda c: c.update(model_type="llava"))
    with pytest.raises(UnsupportedModelError, match="no adapter for family 'llava'"):
        load(copied)
    edit(copied / "config.json", lambda c: c.update(model_type="unheard_of"))
    with pytest.raises(UnsupportedModelError, match="unheard_of"):
        load(copied)


@pytest.mark.parametrize(
    ("text_config", "reason"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "sliding_attention"),
        ({"sliding_window": 512}, "native sliding window of 512"),
        ({"sliding_window": 512, "use_sliding_window": True}, "native sliding window"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    ],
    ids=str,
)
def test_attention_that_the_engine_does_not_run_is_refused(
    text_config: dict[str, Any], reason: str
) -> None:
    config = type("TextConfig", (), text_config)
    with pytest.raises(UnsupportedModelError, match=reason):
        check_text_config("some-model", config)


def test_a_window_that_is_switched_off_is_no_window() -> None:
    config = type("TextConfig", (), {"sliding_window": 512, "use_sliding_window": False})
    check_text_config("some-model", config)


def test_layers_of_a_real_configuration_are_looked_at(copied: Path) -> None:
    def slide(config: dict[str, Any]) -> None:
        config["text_config"]["layer_types"][-1] = "sliding_attention"

    edit(copied / "config.json", slide)
    with pytest.raises(UnsupportedModelError, match="sliding_attention"):
        load(copied)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_ropes_that_do_not_depend_on_length_are_run_exactly(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    # the conformance probe inside would refuse a wrong rotation
    assert load(build_tiny_checkpoint(tmp_path, rope={"rope_theta": 1e4, **rope}))


def test_frames_of_another_size_than_the_vision_towers_are_refused(copied: Path) -> None:
    size = {"size": {"height": 24, "width": 24}}
    edit(copied / "video_preprocessor_config.json", lambda c: c.update(size))
    with pytest.raises(UnsupportedModelError, match="vision tower of 20"):
        load(copied)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="float8"):
        ModelConfig(path="x", dtype="float8")


def test_loading_works_from_the_template_file_of_older_processors(
    tiny_path: Path, copied: Path
) -> None:
    template = (copied / "chat_template.jinja").read_text()
    (copied / "chat_template.jinja").unlink()
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load(copied).prompt.prefix_ids == load(tiny_path).prompt.prefix_ids
