"""int8 and int4: a unit's keys and values of one layer as codes between the ends of their ranges.

Keys share a range per (kv head, channel) over the unit's tokens: before RoPE a few channels of K
lie far from zero, in all tokens alike. Values share one per (kv head, token). Both after KIVI
(arXiv:2402.02750). An extent is

    [low of keys | high of keys | low of values | high of values | codes of keys | codes of values]

The ends are elements that were given, so their own type holds them exactly, in half the bytes of a
float32 scale and minimum; the step between codes follows from them. What is read never leaves
[low, high] and has both ends in it, so encoding it again gives the same bytes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore.aligned import aligned_empty
from kvstore.encoding import Layout
from kvstore.geometry import Geometry

Array = np.ndarray[Any, Any]


class _Scratch(threading.local):
    """One thread's buffers: fresh memory for every unit would cost more than decoding it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def take(self, name: str, count: int, dtype: Any) -> Array:
        """(count,) of the thread's buffer of this name; what it held before is void."""
        needed = count * np.dtype(dtype).itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < needed:
            self._buffers[name] = buffer = aligned_empty((needed,), np.uint8)
        return buffer[:needed].view(dtype)


_scratch = _Scratch()


def scratch_bytes(byte_count: int) -> Array:
    """(byte_count,) uint8 for encoded bytes, valid until this thread asks again."""
    return _scratch.take("bytes", byte_count, np.uint8)


class UnencodableError(ValueError):
    """Internal: the elements have no range. The text says whose and why."""

    def __init__(self, text: str, layer: int) -> None:
        """Of a place among the layers that were given, 0 where it was one."""
        super().__init__(text)
        self.layer = layer


@dataclass(frozen=True, slots=True, eq=False)
class _Half:
    """The keys or the values in an extent; arrays are views of it."""

    low: Array
    """(..., 1, kv_heads, head_dim) of keys, (..., tokens, kv_heads, 1) of values; the element's
    storage."""
    high: Array
    codes: Array
    """(..., tokens, kv_heads, code bytes) uint8."""
    axis: int
    """What a range spans: the tokens (keys) or the channels (values)."""


def _halves(layout: Layout, data: Array, token_count: int) -> tuple[_Half, _Half]:
    """Split extents, (..., extent bytes) uint8."""
    shape, lead = layout.geometry, data.shape[:-1]
    heads, dim, code_bytes = shape.kv_head_count, shape.head_dim, layout.code_bytes
    sizes = [heads * dim * shape.element_bytes] * 2
    sizes += [token_count * heads * shape.element_bytes] * 2
    sizes += [token_count * heads * code_bytes] * 2
    parts = np.split(data, np.cumsum(sizes)[:-1], axis=-1)
    ends = [part.view(shape.storage_dtype) for part in parts[:4]]
    codes = [part.reshape(*lead, token_count, heads, code_bytes) for part in parts[4:]]
    channel, token = (*lead, 1, heads, dim), (*lead, token_count, heads, 1)
    keys = _Half(ends[0].reshape(channel), ends[1].reshape(channel), codes[0], -3)
    return keys, _Half(ends[2].reshape(token), ends[3].reshape(token), codes[1], -1)


def _work_dtype(geometry: Geometry) -> type[np.floating[Any]]:
    return np.float64 if geometry.element == "float64" else np.float32


def _widened(geometry: Geometry, elements: Array, numbers: Array | None = None) -> Array:
    """The elements as numbers of the type that is calculated in, which holds them exactly.

    Args:
        geometry: says what the elements are.
        elements: of any shape, in their storage dtype.
        numbers: where to; without it, new memory.
    """
    if numbers is None:
        numbers = np.empty(elements.shape, _work_dtype(geometry))
    if geometry.element == "bfloat16":
        bits = numbers.view(np.uint32)
        np.copyto(bits, elements)
        bits <<= 16
    else:
        np.copyto(numbers, elements)
    return numbers


def _narrow(geometry: Geometry, numbers: Array, out: Array) -> None:
    """Round numbers to the nearest elements. `numbers` is used up."""
    if geometry.element != "bfloat16":
        np.copyto(out, numbers, casting="same_kind")
        return
    bits = numbers.view(np.uint32)
    bits += 0x8000
    np.right_shift(bits, 16, out=out, casting="unsafe")


def _step(low: Array, high: Array, level_count: int) -> Array:
    """The distance between codes, a hair wider than it must be: no code lies beyond the last."""
    kind = np.finfo(low.dtype)
    wide = (high.astype(np.float64) - low.astype(np.float64)) / level_count
    # Never 0: a range of one number has a step too, and only the code 0.
    step: Array = (wide * (1 + 4 * float(kind.eps))).astype(low.dtype) + kind.smallest_subnormal
    return step


def _pack_codes(codes: Array, out: Array) -> None:
    """Two int4 to a byte: a head's first channels in the low halves, the rest in the high ones."""
    width = out.shape[-1]
    out[...] = codes[..., :width]
    out[..., : codes.shape[-1] - width] |= codes[..., width:] << 4


def _unpacked_into(numbers: Array, codes: Array, head_dim: int) -> None:
    """The codes as numbers; the reverse of `_pack_codes` where they are packed."""
    width = codes.shape[-1]
    if width == head_dim:
        np.copyto(numbers, codes)
        return
    halves = _scratch.take("nibbles", codes.size, np.uint8).reshape(codes.shape)
    np.bitwise_and(codes, 15, out=halves)
    np.copyto(numbers[..., :width], halves)
    np.right_shift(codes, 4, out=halves)
    np.copyto(numbers[..., width:], halves[..., : head_dim - width])


def _encode_half(layout: Layout, elements: Array, half: _Half) -> None:
    shape = layout.geometry
    numbers = _scratch.take("numbers", elements.size, _work_dtype(shape)).reshape(elements.shape)
    _widened(shape, elements, numbers)
    with np.errstate(invalid="ignore", over="ignore"):
        # + 0.0: of -0.0 and 0.0, which are equal, either may be found as the end.
        low = numbers.min(axis=half.axis, keepdims=True) + 0.0
        high = numbers.max(axis=half.axis, keepdims=True) + 0.0
        wild = ~np.isfinite(high - low)
    if wild.any():
        layer = int(np.argwhere(wild)[0, 0]) if wild.ndim > 3 else 0
        raise UnencodableError("NaN, infinity or numbers too far apart", layer)
    step = _step(low, high, layout.level_count)
    _narrow(shape, low.copy(), half.low)
    _narrow(shape, high.copy(), half.high)
    # Of a step near the smallest number there is, the last code may be out of reach by division.
    coarse = (step < np.finfo(step.dtype).tiny) & (high > low)
    ends = (numbers == high) & coarse if coarse.any() else None
    np.subtract(numbers, low, out=numbers)
    np.divide(numbers, step, out=numbers)
    np.rint(numbers, out=numbers)
    if ends is not None:
        numbers[ends] = layout.level_count
    if layout.encoding == "int8":
        np.copyto(half.codes, numbers, casting="unsafe")
        return
    codes = _scratch.take("codes", numbers.size, np.uint8).reshape(numbers.shape)
    np.copyto(codes, numbers, casting="unsafe")
    _pack_codes(codes, half.codes)


def encode_extent(layout: Layout, keys: Array, values: Array, out: Array) -> None:
    """Encode a unit's keys and values of one layer. The same elements always give the same bytes.

    Several layers at once give the bytes that each gives alone, and of a small unit cost as much as
    one: the calls are what takes time then, not the elements.

    Args:
        layout: a quantised one.
        keys: (tokens, kv_heads, head_dim) of the geometry's storage dtype, before RoPE; with layers
            before them, where there are several.
        values: as `keys`.
        out: (layout.extent_bytes(tokens),) uint8, or with layers before them; filled.

    Raises:
        UnencodableError: an element is NaN or infinite, or a range wider than any number.
    """
    halves = _halves(layout, out, keys.shape[-3])
    for name, elements, half in zip(("keys", "values"), (keys, values), halves, strict=True):
        try:
            _encode_half(layout, elements, half)
        except UnencodableError as error:
            raise UnencodableError(f"its {name} hold {error}", error.layer) from None


def _decode_half(layout: Layout, half: _Half, out: Array) -> None:
    shape = layout.geometry
    dtype = _work_dtype(shape)
    low, high = _widened(shape, half.low), _widened(shape, half.high)
    step = _step(low, high, layout.level_count)
    direct = out.dtype == dtype
    numbers = out if direct else _scratch.take("numbers", out.size, dtype).reshape(out.shape)
    _unpacked_into(numbers, half.codes, shape.head_dim)
    numbers *= step
    numbers += low
    np.minimum(numbers, high, out=numbers)  # the last code lies a hair beyond the end
    if not direct:
        _narrow(shape, numbers, out)


def decode_extent(layout: Layout, data: Array, keys_out: Array, values_out: Array) -> None:
    """Decode what `encode_extent` made, straight into the caller's arrays.

    Args:
        layout: a quantised one.
        data: (layout.extent_bytes(tokens),) uint8, verified: codes that were never written would
            be decoded like any other.
        keys_out: C-contiguous (tokens, kv_heads, head_dim) of the geometry's storage dtype.
        values_out: as `keys_out`.
    """
    keys, values = _halves(layout, data, len(keys_out))
    _decode_half(layout, keys, keys_out)
    _decode_half(layout, values, values_out)


def decode_keys(layout: Layout, data: Array, keys_out: Array) -> None:
    """Decode the keys alone; as `decode_extent`, but of any layout."""
    if layout.quantised:
        _decode_half(layout, _halves(layout, data, len(keys_out))[0], keys_out)
    else:
        keys_out.view(np.uint8).reshape(-1)[:] = data[: keys_out.nbytes]


def select_tokens(layout: Layout, data: Array, kept: Array) -> Array:
    """A unit's extent with some of its tokens, their bytes and the ends of ranges as they are.

    Args:
        layout: any.
        data: (layout.extent_bytes(tokens),) uint8.
        kept: (tokens,) bool.

    Returns:
        (layout.extent_bytes(kept tokens),) uint8, a copy.
    """
    shape = layout.geometry
    head_bytes = [shape.token_bytes] * 2
    if layout.quantised:
        ends, codes = shape.element_bytes, layout.code_bytes
        head_bytes = [shape.kv_head_count * size for size in (ends, ends, codes, codes)]
    bounds = np.cumsum([layout.unit_bytes] + [len(kept) * size for size in head_bytes])
    ranges, *parts = np.split(data, bounds[:-1])
    rows = [part.reshape(len(kept), -1)[kept].reshape(-1) for part in parts]
    return np.concatenate([ranges, *rows])
