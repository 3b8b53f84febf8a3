"""Keys and values between torch and the store's numpy, and whole units out of the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvstore.aligned import aligned_empty
from kvstore.geometry import Geometry
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from svc.engine.window_cache import UnitKV


def to_stored(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the tensor's elements as the store takes them: bfloat16 travels as its bits."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array


def from_stored(array: np.ndarray[Any, Any], element: str) -> Tensor:
    """Return the array, which the caller owns, as a tensor of the geometry's element."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if element == "bfloat16" else tensor


def read_units(
    reader: SessionReader, snapshot: Snapshot, geometry: Geometry, units: Sequence[int]
) -> list[UnitKV]:
    """Return keys before RoPE and values of units in all layers, in the order given.

    Raises:
        KVStoreError: they cannot be read, or are not what was written.
    """
    token_counts = [int(snapshot.token_counts[unit]) for unit in units]
    shape = (
        geometry.layer_count,
        sum(token_counts),
        geometry.kv_head_count,
        geometry.head_dim,
    )
    keys, values = (aligned_empty(shape, geometry.storage_dtype) for _ in range(2))
    for layer in range(geometry.layer_count):
        reader.read(snapshot, layer, units, keys[layer], values[layer])
    split_keys = from_stored(keys, geometry.element).split(token_counts, dim=1)
    split_values = from_stored(values, geometry.element).split(token_counts, dim=1)
    return [
        UnitKV(keys=unit_keys, values=unit_values)
        for unit_keys, unit_values in zip(split_keys, split_values, strict=True)
    ]
