"""The mean key of a unit, by which it is found: kept once tokens went that it was the mean of."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvstore.geometry import Geometry


def key_numbers(geometry: Geometry, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Keys as they are stored, (tokens, kv_heads, head_dim), as (tokens, channels) floats."""
    rows = np.ascontiguousarray(keys).reshape(len(keys), -1)
    if geometry.element == "bfloat16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows


def mean_key(geometry: Geometry, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mean over a unit's tokens of its keys in one layer, all heads side by side.

    The same keys give the same bits, wherever they lie.

    Args:
        geometry: says what the elements are.
        keys: (tokens, kv_heads, head_dim) of the storage dtype, before RoPE.

    Returns:
        (kv_heads * head_dim,) float32.
    """
    with np.errstate(all="ignore"):  # what is not finite stays so
        numbers = key_numbers(geometry, keys).astype(np.float32, copy=False)
        mean: np.ndarray[Any, Any] = np.add.reduce(numbers, axis=0) / np.float32(len(keys))
    return mean
