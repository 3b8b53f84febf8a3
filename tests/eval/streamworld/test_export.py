"""The exported folder loads with stock transformers and holds the trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from eval.streamworld import export as export_module
from eval.streamworld.export import ExportTooLargeError, export
from eval.streamworld.model import build, config

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
