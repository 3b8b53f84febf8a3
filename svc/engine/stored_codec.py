"""Decoding stored int8 and int4 units with torch, where the model is: fewer bytes go to its device.

`kvstore.encoding_codec` says what the bytes mean and decodes them with numpy; this gives the same
elements, to the bit. All units of a layer are decoded at once: on a device, launching an operation
for each unit would cost more than the bytes that are saved.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvstore.encoding import Layout
from svc.engine.model import DTYPES


def decodes_on(device: torch.device) -> bool:
    """Whether units are decoded there, and not with numpy before they are copied there.

    On a CPU numpy is the faster: it decodes a unit while its bytes are in the processor's cache.
    The steps between codes are reckoned in float64, which Apple's GPUs do not have.
    """
    return device.type not in ("cpu", "mps")


def decode_units(
    layout: Layout, data: Tensor, token_counts: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Return keys before RoPE and values of units, on the device of their bytes.

    Args:
        layout: a quantised one.
        data: (bytes,) uint8, the units' extents one after the other, verified.
        token_counts: (units,), at least 1 each.

    Returns:
        Both (tokens, kv_heads, head_dim) of the geometry's element.
    """
    shape = layout.geometry
    heads, dim = shape.kv_head_count, shape.head_dim
    counts = torch.from_numpy(token_counts).to(data.device)
    token_count = int(token_counts.sum())
    sizes = layout.unit_bytes + counts * layout.token_bytes
    units = torch.arange(len(token_counts), device=data.device)
    unit_of = torch.repeat_interleave(units, counts, output_size=token_count)
    place = torch.arange(token_count, device=data.device) - (counts.cumsum(0) - counts)[unit_of]
    # An extent: low and high of keys, a channel each; then of every token low and high of values,
    # codes of keys, codes of values.
    unit_starts = sizes.cumsum(0) - sizes
    channel_bytes, end_bytes = shape.token_bytes, heads * shape.element_bytes
    row_bytes = heads * layout.code_bytes
    ends = unit_starts + 2 * channel_bytes
    codes = ends + 2 * counts * end_bytes

    def channels(first: int) -> Tensor:
        rows = _rows(data, unit_starts + first, channel_bytes)
        return _numbers(layout, rows).view(-1, heads, dim)

    def of_tokens(starts: Tensor, size: int) -> Tensor:
        return _rows(data, starts[unit_of] + place * size, size)

    low, high = channels(0), channels(channel_bytes)
    step = _step(low, high, layout.level_count)
    numbers = _codes(layout, of_tokens(codes, row_bytes))
    numbers.mul_(step[unit_of]).add_(low[unit_of])
    keys = _narrow(layout, torch.minimum(numbers, high[unit_of], out=numbers))

    low, high = (
        _numbers(layout, of_tokens(starts, end_bytes)).view(-1, heads, 1)
        for starts in (ends, ends + counts * end_bytes)
    )
    step = _step(low, high, layout.level_count)
    numbers = _codes(layout, of_tokens(codes + counts * row_bytes, row_bytes))
    numbers.mul_(step).add_(low)
    return keys, _narrow(layout, torch.minimum(numbers, high, out=numbers))


def _rows(data: Tensor, starts: Tensor, size: int) -> Tensor:
    """Return (len(starts), size) uint8: the bytes that start there."""
    return data.unfold(0, size, 1)[starts]


def _numbers(layout: Layout, elements: Tensor) -> Tensor:
    """Return (n, bytes) uint8 as the numbers that are calculated with."""
    dtype = DTYPES[layout.geometry.element]
    return elements.view(dtype).to(_work_dtype(layout))


def _work_dtype(layout: Layout) -> torch.dtype:
    return torch.float64 if layout.geometry.element == "float64" else torch.float32


def _step(low: Tensor, high: Tensor, level_count: int) -> Tensor:
    """As `kvstore.encoding_codec` reckons it, in the same order."""
    kind = np.finfo(np.float64 if low.dtype == torch.float64 else np.float32)
    wide = (high.double() - low.double()) / level_count
    return (wide * (1 + 4 * float(kind.eps))).to(low.dtype) + float(kind.smallest_subnormal)


def _codes(layout: Layout, rows: Tensor) -> Tensor:
    """Return (tokens, kv_heads, head_dim) codes as numbers."""
    shape, width = layout.geometry, layout.code_bytes
    rows = rows.view(-1, shape.kv_head_count, width)
    if layout.encoding == "int8":
        return rows.to(_work_dtype(layout))
    numbers = torch.empty(
        (*rows.shape[:2], shape.head_dim), dtype=_work_dtype(layout), device=rows.device
    )
    numbers[..., :width] = rows & 15
    numbers[..., width:] = (rows >> 4)[..., : shape.head_dim - width]
    return numbers


def _narrow(layout: Layout, numbers: Tensor) -> Tensor:
    """Return the nearest elements; `numbers` is used up."""
    dtype = DTYPES[layout.geometry.element]
    if dtype != torch.bfloat16:
        return numbers.to(dtype)
    # As numpy's decoder: half a step goes up in magnitude, where torch would go to the even one.
    return (numbers.view(torch.int32).add_(0x8000) >> 16).to(torch.int16).view(dtype)
