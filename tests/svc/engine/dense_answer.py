"""An answer written a second time, the slow way: dense attention over everything, from scratch.

For every step the whole tail (question and answer so far) runs through the layers' own modules;
every layer's context is put together anew, rotation is written out from its definition, and
ReKV's score is taken in its own form, keys repeated for every head. Shares nothing with the
engine but the model's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svc.engine.model import LoadedModel
from tests.svc.engine.answer_world import StoredUnit

Choose = Callable[[int, Tensor], list[int]]
"""(layer, ReKV's score of every unit) -> units to read, ascending."""


@dataclass(eq=False)
class DenseAnswer:
    """What the reference found."""

    logits: Tensor
    """(steps, vocabulary)"""
    layer_units: list[list[int]]
    layer_scores: list[Tensor]


def dense_answer(
    model: LoadedModel,
    units: Sequence[StoredUnit],
    question: str,
    token_ids: Sequence[int],
    choose: Choose,
    *,
    question_shift: int = 0,
) -> DenseAnswer:
    """Return the logits before each of `token_ids`, which follow the question.

    Args:
        model: whose weights to use.
        units: the snapshot.
        question: what is asked.
        token_ids: the answer, as forced.
        choose: which units a layer reads.
        question_shift: moves the question away from its place; 0 is right.
    """
    decoder, prefix = model.decoder, model.prefix
    prompt = model.prompt.question(question)
    tail = torch.cat(
        [model.adapter.question_embeds(prompt.token_ids), decoder.embed(list(token_ids[:-1]))]
    )
    theta = float(decoder.text_model.config.rope_parameters["rope_theta"])
    group = decoder.head_count // decoder.kv_head_count
    found = DenseAnswer(torch.empty(0), [], [])
    states = tail.clone()
    for index, layer in enumerate(decoder.text_model.layers):
        normed = layer.input_layernorm(states)
        query, key, value = _project(layer.self_attn, normed, decoder.head_dim)
        text = query[list(prompt.text_positions)].mean(0)  # (heads, head_dim)
        scores = torch.stack(
            [
                (text * unit.kv.keys[index].mean(0).repeat_interleave(group, 0)).sum()
                for unit in units
            ]
        )
        chosen = choose(index, scores)
        found.layer_scores.append(scores)
        found.layer_units.append(chosen)
        keys = [prefix.keys[index].transpose(0, 1)]
        values = [prefix.values[index].transpose(0, 1)]
        places = [torch.arange(prefix.token_count)]
        start = prefix.token_count
        for unit in chosen:
            keys.append(units[unit].kv.keys[index])
            values.append(units[unit].kv.values[index])
            places.append(torch.from_numpy(units[unit].positions) + start)
            start += units[unit].span
        own = torch.arange(len(tail)) + start + question_shift
        context_count = sum(map(len, keys))
        all_keys = _rotated(torch.cat([*keys, key]), torch.cat([*places, own]), theta)
        all_values = torch.cat([*values, value]).repeat_interleave(group, 1)
        all_keys = all_keys.repeat_interleave(group, 1)
        seen = torch.ones(len(tail), context_count + len(tail), dtype=torch.bool)
        seen[:, context_count:] = torch.ones(len(tail), len(tail)).tril().bool()
        weights = torch.einsum("qhd,khd->hqk", _rotated(query, own, theta), all_keys)
        weights = (weights * decoder.head_dim**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", weights, all_values).flatten(1)
        states = states + layer.self_attn.o_proj(attended)
        states = states + layer.mlp(layer.post_attention_layernorm(states))
    last = decoder.text_model.norm(states)[prompt.position_count - 1 :]
    found.logits = decoder.lm_head(last)
    return found


def _project(attention: Any, states: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v, each (tokens, heads, head_dim)."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (p(states).unflatten(-1, (-1, head_dim)) for p in projections)
    return query, key, value


def _rotated(states: Tensor, places: Tensor, theta: float) -> Tensor:
    """Rotate (tokens, heads, d): pairs (i, i + d/2) by place * theta^(-2i/d).

    Angles in float32, in the order of operations that models use: it shows in float64 results.
    """
    half = states.shape[-1] // 2
    frequencies = 1.0 / (theta ** (torch.arange(half, dtype=torch.float32) / half))
    angles = places[:, None, None].float() * frequencies
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    a, b = states[..., :half], states[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
