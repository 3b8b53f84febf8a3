"""The model's forward for training: the stock weights, computed as serving computes them.

The video part is a windowed causal pass; a question then attends, in every layer, to the frames
that retrieval picks for that layer, placed at contiguous positions after the prefix. The stock
model's own forward gives the same logits when every frame is picked (a test holds this).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Text decoder sizes: query heads, key/value heads, head dimension, rotary base."""

    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float


def sizes(model: LlavaOnevisionForConditionalGeneration) -> Sizes:
    """The decoder's sizes from the model's configuration."""
    text: Any = model.config.text_config
    return Sizes(
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        rope_theta=text.rope_parameters["rope_theta"],
    )


def frame_features(model: LlavaOnevisionForConditionalGeneration, images: Tensor) -> Tensor:
    """Visual tokens of frames.

    Args:
        model: The model.
        images: [n, side, side, 3] float32 in -1..1.

    Returns:
        [n, tokens per frame, hidden]: tower, projector, 2x2 pooling.
    """
    tower: Any = model.model.vision_tower
    embeddings = tower.embeddings
    patch = embeddings.patch_size
    weight = embeddings.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1)
    count, grid = images.shape[0], images.shape[1] // patch
    x = images.view(count, grid, patch, grid, patch, 3).transpose(2, 3)
    x = x.reshape(count, grid * grid, 3 * patch * patch)
    x = F.linear(x, weight, embeddings.patch_embedding.bias) + embeddings.position_embedding.weight
    for layer in tower.encoder.layers:
        x = x + _vision_attention(layer.self_attn, layer.layer_norm1(x))
        x = x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.layer_norm2(x)), approximate="tanh"))
    x = model.model.multi_modal_projector(x)
    # the stock model pools 6x6 to 3x3 bilinearly, which here is the mean of each 2x2
    x = x.view(count, grid // 2, 2, grid // 2, 2, -1).mean((2, 4))
    pooled: Tensor = x.reshape(count, (grid // 2) ** 2, -1)
    return pooled


def _vision_attention(attention: Any, x: Tensor) -> Tensor:
    count, length, width = x.shape
    heads = attention.num_heads
    q, k, v = (
        f(x).view(count, length, heads, width // heads).transpose(1, 2)
        for f in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    projected: Tensor = attention.out_proj(out)
    return projected


def rope(positions: Tensor, s: Sizes) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [..., head_dim], of integer positions [...]."""
    exponent = torch.arange(0, s.head_dim, 2, dtype=torch.float) / s.head_dim
    angle = positions[..., None].float() / s.rope_theta**exponent
    angle = torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x, halves convention (as Qwen2)."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm of the decoder."""
    return F.rms_norm(x, (x.shape[-1],), weight, _NORM_EPS)


def mlp(layer: Any, x: Tensor) -> Tensor:
    """x plus the layer's gated MLP of its norm."""
    h = norm(x, layer.post_attention_layernorm.weight)
    block = layer.mlp
    added: Tensor = block.down_proj(F.silu(block.gate_proj(h)) * block.up_proj(h))
    return x + added


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One layer's keys before RoPE and values of the video part.

    Both are [clips, length, kv_heads*head_dim].
    """

    keys: Tensor
    values: Tensor


def encode_video(
    model: LlavaOnevisionForConditionalGeneration, tokens: Tensor, mask: Tensor | None
) -> list[Memory]:
    """The video pass: [prefix | frames] through the decoder.

    Args:
        model: The model.
        tokens: [clips, length, hidden] embeddings.
        mask: Additive [clips or 1, 1, length, length], or None for plain causal attention.

    Returns:
        Each layer's memory.
    """
    s = sizes(model)
    clips, length, _ = tokens.shape
    cos, sin = rope(torch.arange(length), s)
    x, memories = tokens, []
    layers = model.model.language_model.layers
    for i, layer in enumerate(layers):
        attention = layer.self_attn
        h = norm(x, layer.input_layernorm.weight)
        keys, values = attention.k_proj(h), attention.v_proj(h)
        memories.append(Memory(keys=keys, values=values))
        if i == len(layers) - 1:
            break  # nothing reads the last layer's outputs at video positions
        q = rotate(_split(attention.q_proj(h), s.heads), cos, sin)
        k = rotate(_split(keys, s.kv_heads), cos, sin)
        out = F.scaled_dot_product_attention(
            q, k, _split(values, s.kv_heads),
            attn_mask=mask, is_causal=mask is None, enable_gqa=True,
        )  # fmt: skip
        x = x + attention.o_proj(out.transpose(1, 2).reshape(clips, length, -1))
        x = mlp(layer, x)
    return memories


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class QuestionInputs:
    """What the question pass needs; n questions over clips of `frames` frames.

    Attributes:
        embeddings: [n, length, hidden], image_newline first.
        lengths: [n] real lengths.
        text_weight: [n, texts, length], 1/count on the tokens of each text that searches: the
            user's question, then the turns before it. 0 elsewhere, and where there are fewer.
        clip: [n] clip of each question.
        candidates: [n, clips, frames] frames that may be picked. Those of other clips count as
            earlier than the own clip.
        recent: [n, clips, frames] frames that are always picked (a subset of the candidates).
        picked_count: How many frames a layer attends to, recent ones included.
        kept: [clips, frames, tokens per frame] false where a token was dropped. Recent frames show
            there what was last kept, and frames are found by the mean over all places so filled.
    """

    embeddings: Tensor
    lengths: Tensor
    text_weight: Tensor
    clip: Tensor
    candidates: Tensor
    recent: Tensor
    picked_count: int
    kept: Tensor


def last_shown(kept: Tensor) -> Tensor:
    """Of each place of each frame, where what it shows lies in the token sequence of all clips.

    Args:
        kept: [clips, frames, tokens], the first frames whole.

    Returns:
        As `kept`, indices into clips * frames * tokens.
    """
    clips, frames, tokens = kept.shape
    frame = torch.arange(frames)[:, None].expand(frames, tokens)
    source = torch.where(kept, frame, -1).cummax(1).values.clamp_min(0)
    clip = torch.arange(clips)[:, None, None]
    return (clip * frames + source) * tokens + torch.arange(tokens)


def frame_keys(memory: Memory, prefix: int, shown: Tensor) -> Tensor:
    """Mean key of each frame over its places, [clips * frames, kv_heads*head_dim]."""
    keys = memory.keys[:, prefix:].flatten(0, 1)
    return keys[shown.flatten(0, 1)].mean(1)


def text_queries(queries: Tensor, text_weight: Tensor, s: Sizes) -> Tensor:
    """Mean query over each text's tokens, summed per group: [n, texts, kv_heads*head_dim]."""
    mean = torch.einsum("nsl,nld->nsd", text_weight, queries)
    grouped = mean.view(*mean.shape[:2], s.kv_heads, s.heads // s.kv_heads, s.head_dim)
    return grouped.sum(3).flatten(2)


def interleaved(scores: Tensor, allowed: Tensor, text_count: Tensor) -> Tensor:
    """What frames are ranked by when several texts search: `retrieval.searches`, for a batch.

    Args:
        scores: [n, texts, frames].
        allowed: [n, frames] which may be found.
        text_count: [n] texts of each question.

    Returns:
        [n, frames], the higher the better.
    """
    if scores.shape[1] == 1:
        return scores[:, 0]
    ranks = scores.masked_fill(~allowed[:, None], -1e9).argsort(-1, descending=True).argsort(-1)
    others = text_count[:, None] - 1
    places = 2 * ranks[:, 0]
    for number in range(1, scores.shape[1]):
        theirs = 2 * (others * ranks[:, number] + number - 1) + 1
        places = torch.where(others >= number, torch.minimum(places, theirs), places)
    return -places.float()


def pick(scores: Tensor, inputs: QuestionInputs) -> tuple[Tensor, Tensor]:
    """The frames a layer attends to.

    Args:
        scores: [n, texts, clips, frames].
        inputs: The questions.

    Returns:
        Flat indices (clip * frames + frame) [n, slots] in time order, and which slots are filled.
    """
    n, clips, frames = inputs.candidates.shape
    total = clips * frames
    ranks = interleaved(
        scores.flatten(2), inputs.candidates.flatten(1), inputs.text_weight.any(-1).sum(1)
    )
    ranked = (
        ranks.view(n, clips, frames)
        .masked_fill(inputs.recent, 1e9)
        .masked_fill(~inputs.candidates, -1e9)
    )
    best = ranked.view(n, total).topk(min(inputs.picked_count, total), -1)
    filled = best.values > -1e8
    own = torch.div(best.indices, frames, rounding_mode="floor") == inputs.clip[:, None]
    order = (best.indices + total * own + 2 * total * ~filled).argsort(-1)
    return best.indices.gather(1, order), filled.gather(1, order)


def answer_states(
    model: LlavaOnevisionForConditionalGeneration,
    memories: list[Memory],
    prefix: int,
    inputs: QuestionInputs,
) -> tuple[Tensor, list[Tensor]]:
    """The question pass.

    Args:
        model: The model.
        memories: Per layer, from `encode_video`.
        prefix: Number of prompt tokens before the first frame.
        inputs: The questions.

    Returns:
        Final hidden states [n, length, hidden] and, per layer, the retrieval scores of every
        question's own text against every frame of every clip, [n, clips, frames].
    """
    s = sizes(model)
    n, length, _ = inputs.embeddings.shape
    clips, frames, tokens = inputs.kept.shape
    column = torch.arange(length)
    own = (column[:, None] >= column) & (column < inputs.lengths[:, None, None])
    own |= torch.eye(length, dtype=torch.bool)
    shown = last_shown(inputs.kept)
    slots = torch.arange(clips * frames * tokens).view(clips * frames, tokens)
    x, scores = inputs.embeddings, []
    for layer, memory in zip(model.model.language_model.layers, memories, strict=True):
        attention = layer.self_attn
        h = norm(x, layer.input_layernorm.weight)
        q_flat, k_flat, v_flat = attention.q_proj(h), attention.k_proj(h), attention.v_proj(h)
        query = text_queries(q_flat, inputs.text_weight, s)
        means = frame_keys(memory, prefix, shown)
        score = (query @ means.T / math.sqrt(s.heads * s.head_dim)).unflatten(-1, (clips, frames))
        scores.append(score[:, 0])
        chosen, filled = pick(score.detach(), inputs)
        whole = inputs.recent.flatten(1).gather(1, chosen)[:, :, None]
        read = torch.where(whole, shown.flatten(0, 1)[chosen], slots[chosen])

        def gather(kept: Tensor, new: Tensor, read: Tensor = read) -> Tensor:
            video = kept[:, prefix:].flatten(0, 1)[read].flatten(1, 2)
            return torch.cat((kept[:1, :prefix].expand(n, -1, -1), video, new), 1)

        k, v = gather(memory.keys, k_flat), gather(memory.values, v_flat)
        context = k.shape[1] - length
        start = prefix + filled.sum(1) * tokens
        q_pos = start[:, None] + column
        k_pos = torch.cat((torch.arange(context).expand(n, -1), q_pos), 1)
        cos, sin = rope(k_pos, s)
        k = rotate(_split(k, s.kv_heads), cos[:, None], sin[:, None])
        q = rotate(_split(q_flat, s.heads), cos[:, None, context:], sin[:, None, context:])
        held = inputs.kept.flatten(0, 1)[chosen] | whole
        seen = (held & filled[:, :, None]).flatten(1)[:, None].expand(-1, length, -1)
        visible = torch.cat((seen.new_ones(n, length, prefix), seen, own), -1)
        mask = torch.zeros(visible.shape).masked_fill_(~visible, -1e9)
        out = F.scaled_dot_product_attention(
            q, k, _split(v, s.kv_heads), attn_mask=mask[:, None], enable_gqa=True
        )
        x = x + attention.o_proj(out.transpose(1, 2).reshape(n, length, -1))
        x = mlp(layer, x)
    return norm(x, model.model.language_model.norm.weight), scores
