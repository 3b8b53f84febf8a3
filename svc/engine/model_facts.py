"""What a checkpoint is and would take, from its configuration alone: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from kvstore.encoding import Encoding, Layout
from kvstore.geometry import Geometry
from svc.engine import attention
from svc.engine.adapters.base import Adapter, StreamShape
from svc.engine.adapters.registry import adapter_factory
from svc.engine.checkpoint import Checkpoint
from svc.engine.decoder import Decoder
from svc.engine.model import (
    DTYPES,
    VISION_PARTS,
    ModelConfig,
    check_text_config,
    prompt_format,
    read_config,
)
from svc.engine.preprocess import load_pixel_rules

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A checkpoint that the engine can run, as far as its configuration tells."""

    family: str
    parameter_count: int
    layer_count: int
    kv_head_count: int
    head_dim: int
    max_position_count: int
    ingest_weight_bytes: int
    """Of all weights, which the ingest process holds."""
    qa_weight_bytes: int
    """Without the vision tower, which the QA process drops."""
    frames_per_unit: int
    tokens_per_unit: int
    """Of a whole unit, the most where it varies with its text."""
    frame_height: int
    """In pixels, as the vision tower sees frames."""
    frame_width: int
    kv_bytes_per_hour: Mapping[Encoding, int]
    """Keys and values of an hour of stream with every token kept, by how they are stored."""


def model_facts(config: ModelConfig, stream: StreamShape) -> ModelFacts:
    """Return what a checkpoint would take for sessions of a shape.

    Whether the engine's attention equals the model's own shows only when it is loaded.

    Raises:
        NotAModelError: there is no checkpoint at the path.
        UnsupportedModelError: it is one that the engine cannot run exactly; says why.
    """
    attention.register()
    checkpoint = Checkpoint(config.path)
    transformers_config = read_config(config.path)
    make_adapter = adapter_factory(config.path, transformers_config.model_type)
    check_text_config(config.path, transformers_config.get_text_config())
    rules = load_pixel_rules(checkpoint)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            transformers_config, dtype=DTYPES[config.dtype]
        )
    decoder = Decoder(model)
    tokenizer = AutoTokenizer.from_pretrained(config.path, trust_remote_code=False)
    usual: Adapter = make_adapter(config.path, model, decoder, rules, tokenizer)
    prompt_format(checkpoint, tokenizer, usual)
    adapter = usual.shaped(stream)
    geometry = Geometry(
        layer_count=decoder.layer_count,
        kv_head_count=decoder.kv_head_count,
        head_dim=decoder.head_dim,
        element=config.dtype,
    )
    unit_count = round(_HOUR_S * stream.sample_fps / adapter.frames_per_unit)
    seeing = sum(
        parameter.nbytes
        for name, part in model.model.named_children()
        if name in VISION_PARTS
        for parameter in part.parameters()
    )
    return ModelFacts(
        family=adapter.family,
        parameter_count=sum(parameter.numel() for parameter in model.parameters()),
        layer_count=decoder.layer_count,
        kv_head_count=decoder.kv_head_count,
        head_dim=decoder.head_dim,
        max_position_count=decoder.max_position_count,
        ingest_weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        qa_weight_bytes=sum(parameter.nbytes for parameter in model.parameters()) - seeing,
        frames_per_unit=adapter.frames_per_unit,
        tokens_per_unit=adapter.tokens_per_unit,
        frame_height=adapter.frame_height,
        frame_width=adapter.frame_width,
        kv_bytes_per_hour={
            encoding: decoder.layer_count
            * Layout(geometry, encoding).extent_bytes(
                unit_count * adapter.tokens_per_unit, unit_count
            )
            for encoding in get_args(Encoding)
        },
    )
