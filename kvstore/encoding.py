"""How keys and values lie in the store: as the model made them, or in 8 or 4 bits an element.

`Geometry` is the shape of what callers give and get; `Layout` is what of it lies in memory and on
disk, and how many bytes that takes. Encoding happens once, when a unit is appended, so the hot tail
and the disk hold the same bytes; `kvstore.encoding_codec` does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import xxhash

from kvstore.geometry import Geometry

Encoding = Literal["model", "int8", "int4"]
"""model: the elements as given. int8, int4: so many bits an element, and the ends of its range."""
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)


def encoding_named(name: str) -> Encoding:
    """The encoding of this name.

    Raises:
        ValueError: there is none.
    """
    match name:
        case "model" | "int8" | "int4":
            return name
    raise ValueError(f"encoding must be one of {list(ENCODINGS)}, got {name!r}")


@dataclass(frozen=True, slots=True)
class Layout:
    """A geometry and the encoding it is stored in; fixed for the life of a session."""

    geometry: Geometry
    encoding: Encoding = "model"

    def __post_init__(self) -> None:
        encoding_named(self.encoding)

    @property
    def quantised(self) -> bool:
        """Whether what is read differs from what was given, by up to half a step."""
        return self.encoding != "model"

    @property
    def level_count(self) -> int:
        """Steps from the low end of a range to its high end; 0 where nothing is quantised."""
        return {"model": 0, "int8": 255, "int4": 15}[self.encoding]

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of one token's keys (or values) of one head; two int4 share a byte."""
        head_dim = self.geometry.head_dim
        return head_dim if self.encoding == "int8" else -(-head_dim // 2)

    @property
    def unit_bytes(self) -> int:
        """Bytes that a unit takes in one layer whatever its tokens: the ends of its channels."""
        return 2 * self.geometry.token_bytes if self.quantised else 0

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        shape = self.geometry
        if not self.quantised:
            return 2 * shape.token_bytes
        return 2 * shape.kv_head_count * (shape.element_bytes + self.code_bytes)

    def extent_bytes(self, token_count: int, unit_count: int = 1) -> int:
        """Bytes of the keys and values of whole units, with `token_count` tokens, in one layer."""
        return unit_count * self.unit_bytes + token_count * self.token_bytes

    @property
    def fingerprint(self) -> int:
        """A 64-bit hash that two layouts share only when they are equal."""
        text = f"{self.geometry.fingerprint:016x},{self.encoding}"
        return xxhash.xxh3_64_intdigest(text.encode())
