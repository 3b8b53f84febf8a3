"""What quantised keys and values do to the output of attention, on made-up material."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.encoding import Layout
from kvstore.encoding_codec import decode_extent, encode_extent
from kvstore.geometry import Geometry

Array = np.ndarray[Any, Any]

_GROUP = 7  # query heads to a kv head, as in Qwen2-7B
_QUERIES = 16
_SHARPNESS = 3.0  # queries of norm 1 attend to everything alike, which hides errors of keys


@dataclass(frozen=True, slots=True)
class KeyKind:
    """How keys are made."""

    name: str
    heavy_channel_count: int
    """Of each head: channels with a large offset, the same in all tokens."""


PLAIN = KeyKind("Gaussian", 0)
HEAVY = KeyKind("heavy-channel", 4)
"""Before RoPE a few channels of real K lie far from zero in every token (KIVI, arXiv:2402.02750;
KVQuant, arXiv:2401.18079)."""
_OFFSETS = (60.0, -45.0, 30.0, -20.0)


def from_bfloat16(bits: Array) -> Array:
    """The numbers of bfloat16 bits, float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(numbers: Array) -> Array:
    """The nearest bfloat16, as bits in uint16."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x8000) >> 16).astype(np.uint16)


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Keys and values of some units in one layer."""

    keys: Array
    """(units * tokens, kv_heads, head_dim) uint16: bfloat16 bits."""
    values: Array
    unit_tokens: int

    @classmethod
    def make(cls, kind: KeyKind, shape: Geometry, unit_tokens: int, unit_count: int) -> Material:
        """The same numbers every time."""
        rng = np.random.default_rng(11)
        size = (unit_count * unit_tokens, shape.kv_head_count, shape.head_dim)
        keys = rng.standard_normal(size, np.float32)
        for head in range(shape.kv_head_count):
            channels = rng.choice(shape.head_dim, kind.heavy_channel_count, replace=False)
            keys[:, head, channels] += _OFFSETS[: kind.heavy_channel_count]
        values = rng.standard_normal(size, np.float32)
        return cls(to_bfloat16(keys), to_bfloat16(values), unit_tokens)


def _attend(queries: Array, keys: Array, values: Array) -> Array:
    """Outputs of (kv_heads, queries, head_dim) queries over (tokens, kv_heads, head_dim) keys."""
    scores = np.einsum("hqd,thd->hqt", queries, keys, optimize=True) / np.sqrt(keys.shape[-1])
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    outputs: Array = np.einsum("hqt,thd->hqd", weights, values, optimize=True)
    return outputs


def _round_trip(layout: Layout, material: Material, keys: Array, values: Array) -> list[Array]:
    """Both through the codec, unit after unit."""
    outs = [np.empty_like(keys), np.empty_like(values)]
    data = np.empty(layout.extent_bytes(material.unit_tokens), np.uint8)
    for start in range(0, len(keys), material.unit_tokens):
        unit = slice(start, start + material.unit_tokens)
        encode_extent(layout, keys[unit], values[unit], data)
        decode_extent(layout, data, outs[0][unit], outs[1][unit])
    return [from_bfloat16(out) for out in outs]


def attention_errors(
    layout: Layout, material: Material, exact: tuple[Array, Array]
) -> tuple[float, float]:
    """Relative error of the attention output: as the store does it, and with keys ranged per token.

    Args:
        layout: a quantised one, of bfloat16.
        material: what is attended to.
        exact: its keys and values as float32.
    """
    rng = np.random.default_rng(5)
    shape = layout.geometry
    size = (shape.kv_head_count, _GROUP * _QUERIES, shape.head_dim)
    queries = _SHARPNESS * rng.standard_normal(size)
    expected = _attend(queries, *exact)

    def error(keys: Array, values: Array) -> float:
        difference = _attend(queries, keys, values) - expected
        return float(np.linalg.norm(difference) / np.linalg.norm(expected))

    keys, values = _round_trip(layout, material, material.keys, material.values)
    # What the codec does to values, done to keys.
    per_token = _round_trip(layout, material, material.values, material.keys)[1]
    return error(keys, values), error(per_token, values)
