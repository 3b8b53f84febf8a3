"""The probe of every model load: the engine's attention against the model's own, layer by layer.

It takes the place of a list of allowed families and versions: whatever transformers changes,
either the outputs agree, or the model is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svc.engine import attention
from svc.engine.decoder import Decoder
from svc.engine.errors import ConformanceError
from svc.engine.prefix import encode_prefix
from svc.engine.window import WindowConfig
from svc.engine.window_cache import UnitSpan, WindowCache

_PREFIX_TOKENS = 3
_UNIT_TOKENS = (4, 1, 5)  # one query alone takes a path of its own in many kernels
_UNLIMITED = WindowConfig(window_tokens=1 << 20, window_positions=1 << 20)
_SEED = 20231107


def check_conformance(model: Any, decoder: Decoder) -> float:
    """Return the largest relative difference, over layers and tokens, between both attentions.

    The difference of a token is the norm of the difference of its states over their norm.

    Args:
        model: the transformers model; its attention is switched for the probe and switched back.
        decoder: the same model as the engine runs it.

    Raises:
        ConformanceError: a layer's difference is above the tolerance; names the first one.
    """
    tolerance = _tolerance(decoder.dtype)
    largest = 0.0
    with torch.inference_mode():
        embeds = _random_embeds(decoder)
        stock = _stock_states(model, decoder, embeds)
        ours = _engine_states(decoder, embeds)
        for layer, (expected, actual) in enumerate(zip(stock, ours, strict=True)):
            expected, actual = expected[_PREFIX_TOKENS:].double(), actual.double()
            norms = expected.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
            difference = float(((actual - expected).norm(dim=1) / norms).max())
            if not difference <= tolerance:  # so that NaN is refused too
                raise ConformanceError(f"layer {layer}", difference, tolerance)
            largest = max(largest, difference)
    return largest


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype in (torch.float32, torch.float64) else 1e-1


def _random_embeds(decoder: Decoder) -> Tensor:
    """Return embeddings that spread as the model's own tokens do, the same at every load."""
    weight: Tensor = decoder.embed_tokens.weight
    spread = float(weight[:1024].float().std())
    shape = (_PREFIX_TOKENS + sum(_UNIT_TOKENS), decoder.hidden_size)
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(shape, generator=generator) * spread
    return noise.to(device=decoder.device, dtype=decoder.dtype)


def _stock_states(model: Any, decoder: Decoder, embeds: Tensor) -> list[Tensor]:
    """Return every layer's output, (n, hidden), of one forward of the model as it is."""
    model.set_attn_implementation({"text_config": "sdpa"})
    try:
        output = decoder.text_model(
            inputs_embeds=embeds[None],
            position_ids=torch.arange(embeds.shape[0], device=embeds.device)[None],
            use_cache=False,
            output_hidden_states=True,
        )
    finally:
        model.set_attn_implementation({"text_config": attention.NAME})
    return [state[0] for state in output.hidden_states[1:]]


def _engine_states(decoder: Decoder, embeds: Tensor) -> list[Tensor]:
    """Return the same for the tokens after the prefix, given unit by unit."""
    prefix = encode_prefix(decoder, embeds[:_PREFIX_TOKENS])
    cache = WindowCache(decoder, prefix, _UNLIMITED, (1,) * decoder.rope.axis_count)
    chunks: list[list[Tensor]] = []
    for unit in torch.split(embeds[_PREFIX_TOKENS:], list(_UNIT_TOKENS)):
        count = unit.shape[0]
        positions = torch.arange(count).expand(decoder.rope.axis_count, -1)
        started = cache.begin([UnitSpan(positions=positions, position_span=count)])
        chunks.append(decoder.run_layers(unit, started))
        cache.commit(started)
    return [torch.cat(states) for states in zip(*chunks, strict=True)]
