"""The built-in model's architecture: stock LLaVA-OneVision parts, a few million parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from eval.streamworld.render import FRAME_PX
from eval.streamworld.vocabulary import END_ID, IMAGE_ID, PAD_ID, VIDEO_ID, VOCABULARY_SIZE

PATCH_PX = 16
TOKENS_PER_FRAME = (FRAME_PX // PATCH_PX // 2) ** 2
ROPE_THETA = 1e6


def config(
    *, hidden: int = 256, layers: int = 5, heads: int = 8, kv_heads: int = 2, mlp: int = 512,
    vision_hidden: int = 128, vision_layers: int = 3, vision_mlp: int = 384, vision_heads: int = 4,
) -> LlavaOnevisionConfig:  # fmt: skip
    """The model's configuration; the defaults are the shipped model's sizes."""
    vision = SiglipVisionConfig(
        hidden_size=vision_hidden, intermediate_size=vision_mlp, num_hidden_layers=vision_layers,
        num_attention_heads=vision_heads, image_size=FRAME_PX, patch_size=PATCH_PX,
        vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=VOCABULARY_SIZE, hidden_size=hidden, intermediate_size=mlp,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=32768, initializer_range=0.03, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=None, eos_token_id=END_ID, pad_token_id=PAD_ID,
    )  # fmt: skip
    return LlavaOnevisionConfig(  # type: ignore[call-arg]
        vision_config=vision, text_config=text, image_token_id=IMAGE_ID, video_token_id=VIDEO_ID,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
        image_grid_pinpoints=[[FRAME_PX, FRAME_PX]],
    )  # fmt: skip


def build(
    configuration: LlavaOnevisionConfig, *, seed: int
) -> LlavaOnevisionForConditionalGeneration:
    """A freshly initialised model, float32.

    Queries start out similar to the keys of their group: the retrieval score (mean query . mean
    key) is then a similarity of contents from the first step on, which shortens the drill.
    """
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(configuration)
    nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.1)
    nn.init.normal_(model.model.image_newline, std=0.03)
    text: Any = configuration.text_config
    group = text.num_attention_heads // text.num_key_value_heads
    head_dim = text.hidden_size // text.num_attention_heads
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            key = layer.self_attn.k_proj.weight.view(text.num_key_value_heads, 1, head_dim, -1)
            query = layer.self_attn.q_proj.weight.view(
                text.num_key_value_heads, group, head_dim, -1
            )
            query.mul_(0.7).add_(key, alpha=0.7)
    return model
