"""The shape of a token's keys and values, and where a reader found them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import xxhash

_STORAGE: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    # numpy has no bfloat16: its bits travel as 16-bit integers.
    "bfloat16": np.dtype("<u2"),
}


class Tier(Enum):
    """Where the bytes of a unit came from; the fastest first."""

    HOT = "hot"
    RAM = "ram"
    DISK = "disk"

    @classmethod
    def slowest(cls, tiers: Iterable[Tier]) -> Tier:
        """The last of them in this order; HOT of none."""
        order = list(cls)
        return order[max(map(order.index, tiers), default=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What a token's keys and values look like; fixed for the life of a session."""

    layer_count: int
    kv_head_count: int
    head_dim: int
    element: str
    """"float64", "float32", "float16" or "bfloat16" (stored as numpy uint16)."""

    def __post_init__(self) -> None:
        if min(self.layer_count, self.kv_head_count, self.head_dim) < 1:
            raise ValueError(
                "layer_count, kv_head_count and head_dim must be >= 1, got "
                f"{self.layer_count}, {self.kv_head_count}, {self.head_dim}"
            )
        if self.element not in _STORAGE:
            raise ValueError(f"element must be one of {sorted(_STORAGE)}, got {self.element!r}")

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """The numpy dtype the elements travel in."""
        return _STORAGE[self.element]

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return self.storage_dtype.itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys (or values) in one layer."""
        return self.kv_head_count * self.head_dim * self.element_bytes

    @property
    def fingerprint(self) -> int:
        """A 64-bit hash that two geometries share only when they are equal."""
        text = f"{self.layer_count},{self.kv_head_count},{self.head_dim},{self.element}"
        return xxhash.xxh3_64_intdigest(text.encode())
