"""Export to a stock Hugging Face folder: weights, configuration, tokenizer, processors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, LlavaOnevisionForConditionalGeneration

from eval.streamworld.model import TOKENS_PER_FRAME
from eval.streamworld.render import FRAME_PX
from eval.streamworld.tokenizer import build_tokenizer
from eval.streamworld.vocabulary import END_ID, PAD_ID

MOST_BYTES = 15_000_000
_MAX_NEW_TOKENS = 8
# what the service should use with this model, by the names of its settings
RECOMMENDED = {
    "window_tokens": 16 * TOKENS_PER_FRAME,
    "window_positions": 16 * TOKENS_PER_FRAME,
    "retrieved_units": 8,
    # by `calibrate`: no loss, at most a point, two and a half; ARCHITECTURE.md has the table
    "reduction_presets": {
        "last_kept": {"light": 0.95, "balanced": 0.7, "aggressive": 0.5},
        "dtd": {"light": 0.95, "balanced": 0.7, "aggressive": 0.6},
        "budget": {"light": 0.5, "balanced": 0.2, "aggressive": 0.1},
        "key_norm": {"light": 0.7, "balanced": 0.6, "aggressive": 0.4},
    },
    "reduction": "last_kept",
    "kv_encoding": "int4",
}

_PIXELS: dict[str, Any] = {
    "do_resize": True,
    "size": {"height": FRAME_PX, "width": FRAME_PX},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
}
_SIDE_FILES: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": _PIXELS
    | {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_grid_pinpoints": [[FRAME_PX, FRAME_PX]],
    },
    "video_preprocessor_config.json": _PIXELS
    | {
        "video_processor_type": "LlavaOnevisionVideoProcessor",
        "processor_class": "LlavaOnevisionProcessor",
    },
    "lookback.json": RECOMMENDED,
    "processor_config.json": {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": 36,
        "vision_feature_select_strategy": "full",
        "image_token": "<image>",
        "video_token": "<video>",
    },
}


class ExportTooLargeError(Exception):
    """The exported folder is larger than a repository should carry.

    Attributes:
        size_bytes: Its size.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the export has {size_bytes} bytes, allowed are {MOST_BYTES}")
        self.size_bytes = size_bytes


def export(model: LlavaOnevisionForConditionalGeneration, folder: Path, *, card: str) -> None:
    """Write the checkpoint folder; it replaces one that is there only when complete.

    Weights are stored in float16 and declared float32, so that loading gives exact float32 copies.

    Args:
        model: The trained model; unchanged.
        folder: Where the checkpoint goes.
        card: The model card, Markdown.

    Raises:
        ExportTooLargeError: The folder would exceed MOST_BYTES.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    stored = LlavaOnevisionForConditionalGeneration(model.config)
    stored.load_state_dict(model.state_dict())
    stored.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=END_ID, pad_token_id=PAD_ID, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False
    )
    stored.half().save_pretrained(partial)  # type: ignore[no-untyped-call]
    build_tokenizer().save_pretrained(partial)
    _declare_float32(partial / "config.json")
    for name, content in _SIDE_FILES.items():
        (partial / name).write_text(json.dumps(content, indent=2) + "\n")
    (partial / "README.md").write_text(card)
    for file in partial.iterdir():  # safetensors writes for the owner only
        file.chmod(0o644)
    size_bytes = sum(file.stat().st_size for file in partial.iterdir())
    if size_bytes > MOST_BYTES:
        raise ExportTooLargeError(size_bytes)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _declare_float32(path: Path) -> None:
    configuration = json.loads(path.read_text())
    for part in (configuration, configuration["text_config"], configuration["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(configuration, indent=2) + "\n")
