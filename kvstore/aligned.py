"""Memory that starts on a page, which the kernel's copies want.

Reads land in it twice as fast as 16 bytes beside a cache line, where numpy's own arrays start, and
reads past the page cache need no copy in between.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALIGN_BYTES = 4096


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """A C-contiguous array of this shape that starts on a page; its contents are arbitrary."""
    wanted = np.dtype(dtype)
    byte_count = math.prod(shape) * wanted.itemsize
    memory = np.empty(byte_count + ALIGN_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGN_BYTES
    array: Array = memory[start : start + byte_count].view(wanted).reshape(shape)
    return array


class KVMemory:
    """Memory for keys and values that are read again and again: fresh pages cost as much as a read.

    Grows to the largest read. Used by one reader at a time.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._memory = aligned_empty((0,), np.uint8)

    def take(self, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
        """Keys and values, each of this shape, on pages of their own; valid until the next call."""
        wanted = np.dtype(dtype)
        byte_count = math.prod(shape) * wanted.itemsize
        stride = -(-byte_count // ALIGN_BYTES) * ALIGN_BYTES
        self._grow(2 * stride)
        keys, values = (
            self._memory[start : start + byte_count].view(wanted).reshape(shape)
            for start in (0, stride)
        )
        return keys, values

    def take_bytes(self, byte_count: int) -> Array:
        """(byte_count,) uint8 for both as they are stored; valid until the next call."""
        self._grow(byte_count)
        return self._memory[:byte_count]

    def _grow(self, byte_count: int) -> None:
        if len(self._memory) < byte_count:
            self._memory = aligned_empty((byte_count,), np.uint8)
