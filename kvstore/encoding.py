"""How keys and values lie in the store: as the model made them, or in 8 or 4 bits an element.

`Geometry` is the shape of what callers give and get; `Layout` is what of it lies in memory and on
disk, and how many bytes that takes. Encoding happens once, when a unit is appended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import xxhash

from kvstore.geometry import Geometry

Encoding = Literal["model", "int8", "int4"]
"""model: the elements as given. int8, int4: so many bits an element."""
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
        if self.encoding != "model":
            raise ValueError(f"encoding {self.encoding!r} cannot be written yet")

    @property
    def unit_bytes(self) -> int:
        """Bytes that a unit takes in one layer whatever its tokens."""
        return 0

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.geometry.token_bytes

    def extent_bytes(self, token_count: int, unit_count: int = 1) -> int:
        """Bytes of the keys and values of whole units, with `token_count` tokens, in one layer."""
        return unit_count * self.unit_bytes + token_count * self.token_bytes

    @property
    def fingerprint(self) -> int:
        """A 64-bit hash that two layouts share only when they are equal."""
        text = f"{self.geometry.fingerprint:016x},{self.encoding}"
        return xxhash.xxh3_64_intdigest(text.encode())
