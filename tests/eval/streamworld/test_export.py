"""The exported folder loads with stock transformers and holds the trained weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from eval.streamworld import export as export_module
from eval.streamworld.card import model_card
from eval.streamworld.export import RECOMMENDED, ExportTooLargeError, export
from eval.streamworld.model import build, config
from eval.streamworld.recipe import Recipe

TINY = {
    "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 32, "vision_hidden": 16,
    "vision_layers": 1, "vision_mlp": 16, "vision_heads": 1,
}  # fmt: skip


def test_an_export_loads_as_float32_with_the_weights_rounded_to_float16(tmp_path: Path) -> None:
    model = build(config(**TINY), seed=1)
    export(model, tmp_path / "made", card="# card\n")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "made")
    assert loaded.dtype == torch.float32
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float()), name
    assert AutoTokenizer.from_pretrained(tmp_path / "made").convert_ids_to_tokens(5) == "<video>"


def test_an_export_replaces_the_folder_only_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "made"
    export(build(config(**TINY), seed=1), folder, card="first")
    monkeypatch.setattr(export_module, "MOST_BYTES", 10)
    with pytest.raises(ExportTooLargeError):
        export(build(config(**TINY), seed=2), folder, card="second")
    assert (folder / "README.md").read_text() == "first"


def test_an_export_can_be_read_by_every_user_and_recommends_the_window_it_was_trained_with(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "made"
    export(build(config(**TINY), seed=1), folder, card="# card\n")
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in folder.iterdir())
    recommended = json.loads((folder / "lookback.json").read_text())
    presets = recommended.pop("reduction_presets")
    assert presets["last_kept"] == {"light": 0.95, "balanced": 0.7, "aggressive": 0.5}
    assert recommended == {
        "window_tokens": 144, "window_positions": 144, "retrieved_units": 8,
        "reduction": "last_kept", "kv_encoding": "int4",
    }  # fmt: skip


def test_the_card_holds_every_measured_figure() -> None:
    figures = [
        {"duration_s": d, "kind": k, "n": 40, "exact": 0.975, "option": 1.0, "hit": hit,
         "crf": 23, "retrieved": 7, "recent": 1}
        for d in (300.0, 3600.0) for k, hit in (("past_colour", 0.5), ("not_seen", None))
    ]  # fmt: skip
    card = model_card(
        recipe=asdict(Recipe()), seed=0, parameters=3_586_816, recommended=RECOMMENDED,
        tokens_per_frame=9, figures=figures,
    )  # fmt: skip
    assert "| past_colour | 0.975 / 1.000 / 0.50 (40) | 0.975 / 1.000 / 0.50 (40) |" in card
    assert "| not_seen | 0.975 / 1.000 / - (40)" in card
    assert "{" not in card.replace("{question}", "")
