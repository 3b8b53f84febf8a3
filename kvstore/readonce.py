"""Which slices are read past the page cache: under `auto`, those that are large and wanted once.

A cold slice comes faster and with less work past the cache. But one that is wanted again is wanted
from there, and the cache has better things to keep than what one question read and no other will:
so the second read goes through it, and stays. It does not ask whether the cache has the slice: that
takes 2 us. The idea of letting nothing in at its first use is that of the ghost queue of S3-FIFO
(Yang et al., SOSP 2023).
"""

from __future__ import annotations

LEAST_BYTES = 64 * 1024
"""Below, what a read costs is not its bytes, and it goes through the cache."""
_REMEMBERED = 16_384


class ReadOnce:
    """Places that were read lately; about twice `_REMEMBERED` at most. Thread-safe.

    Forgetting one, or taking it for another, costs time only.
    """

    def __init__(self) -> None:
        """Nothing was read."""
        self._young: set[tuple[int, int]] = set()
        self._old: set[tuple[int, int]] = set()

    def is_first(self, segment_number: int, offset: int) -> bool:
        """Whether a read is the first there; it counts, also one that the page cache answers."""
        place = (segment_number, offset)
        if place in self._young or place in self._old:
            return False
        self._young.add(place)
        if len(self._young) > _REMEMBERED:
            self._old, self._young = self._young, set()
        return True
