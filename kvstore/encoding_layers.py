"""A unit's keys and values of all layers, encoded as a session stores them, with checksums."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from kvstore.encoding import Layout
from kvstore.encoding_codec import UnencodableError, encode_extent

_PASS_BYTES = 1 << 18
"""Keys of so many layers at a time: below a core's cache, where they are hashed next, and above
what the calls themselves cost."""


def encode_layers(
    layout: Layout,
    keys: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    extents: np.ndarray[Any, Any],
) -> list[int]:
    """Fill the extents of a unit; return their checksums, a layer each.

    Args:
        layout: any.
        keys: (layers, tokens, kv_heads, head_dim) of the geometry's storage dtype, before RoPE.
        values: as `keys`.
        extents: C-contiguous (layers, extent bytes) uint8.

    Raises:
        UnencodableError: as `encode_extent`, with the layer; the extents are void.
    """
    shape, token_count = layout.geometry, keys.shape[1]
    halves = (-1, 2, token_count, shape.kv_head_count, shape.head_dim)
    step = max(1, _PASS_BYTES // (token_count * shape.token_bytes))
    checksums: list[int] = []
    for start in range(0, shape.layer_count, step):
        part = slice(start, start + step)
        if layout.quantised:
            try:
                encode_extent(layout, keys[part], values[part], extents[part])
            except UnencodableError as error:
                raise UnencodableError(str(error), start + error.layer) from None
        else:
            typed = extents[part].view(shape.storage_dtype).reshape(halves)
            typed[:, 0] = keys[part]
            typed[:, 1] = values[part]
        checksums += [xxhash.xxh3_64_intdigest(extent.data) for extent in extents[part]]
    return checksums
