"""Tiny Qwen-VL checkpoints with random weights, made on the spot; see `tests.svc.engine.tiny`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.svc.engine.tiny import build_tokenizer, scale_up

LAYER_COUNT = 3
TOKEN_PX = 8
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ROPE_THETA = 1e6

_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_qwen25(folder: Path) -> Path:
    """Write a Qwen2.5-VL checkpoint into the folder and return it."""
    tokenizer, ids = _write_tokenizer(folder)
    config = Qwen2_5_VLConfig(
        vision_config={
            **_VISION, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        text_config={
            **_text(len(tokenizer), ids),
            "rope_parameters": {
                "rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [2, 3, 3],
            },
        },
        **_special_ids(ids),
    )  # fmt: skip
    _write_model(folder, Qwen2_5_VLForConditionalGeneration(config), ids)
    _write_processing(folder, "Qwen2VLVideoProcessor", [0.48145466, 0.4578275, 0.40821073])
    return folder


def build_qwen3(folder: Path) -> Path:
    """Write a Qwen3-VL checkpoint into the folder and return it."""
    tokenizer, ids = _write_tokenizer(folder)
    config = Qwen3VLConfig(
        vision_config={
            **_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        text_config={
            **_text(len(tokenizer), ids), "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        **_special_ids(ids),
    )  # fmt: skip
    _write_model(folder, Qwen3VLForConditionalGeneration(config), ids)
    _write_processing(folder, "Qwen3VLVideoProcessor", [0.5, 0.5, 0.5])
    return folder


_VISION = {
    "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
    "out_hidden_size": 64, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip


def _text(vocabulary_size: int, ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary_size, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": LAYER_COUNT, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 32768, "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
    }  # fmt: skip


def _special_ids(ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"], "tie_word_embeddings": False,
    }  # fmt: skip


def _write_tokenizer(folder: Path) -> tuple[Any, dict[str, int]]:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(SPECIAL_TOKENS)
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer, {text: tokenizer.convert_tokens_to_ids(text) for text in SPECIAL_TOKENS}


def _write_model(folder: Path, model: Any, ids: Mapping[str, int]) -> None:
    model.eval()
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    scale_up(model)
    model.save_pretrained(folder)


def _write_processing(folder: Path, processor: str, mean: Sequence[float]) -> None:
    processing = {
        "size": {"shortest_edge": 4 * TOKEN_PX**2, "longest_edge": 12 * TOKEN_PX**2},
        "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "resample": 3,
        "rescale_factor": 1 / 255, "image_mean": list(mean), "image_std": [0.5, 0.4, 0.3],
        "video_processor_type": processor,
    }  # fmt: skip
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processing))
