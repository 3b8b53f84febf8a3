"""The slices that left lately: a table of one size, whose memory is taken whole."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from kvstore.eviction import Place

_BUCKET_SIZE = 8
_SHARE_FILLED = 2
"""One place in so many is filled, on average: buckets overflow for about one slice in a hundred."""
_WORD = (1 << 64) - 1


class GhostTable:
    """Remembers the last `capacity` slices that were added and not taken out since.

    Of a slice it keeps a hash, and when it came: 32 bytes for each that fits. That forgets one too
    early where a bucket overflows, and takes one for another where hashes of 61 bits are equal;
    either costs nothing but a worse choice.
    """

    def __init__(self) -> None:
        """Nothing fits."""
        self.capacity = 0
        self._bucket_count = 1
        self._hashes = array("Q", [0]) * _BUCKET_SIZE
        self._times = array("Q", [0]) * _BUCKET_SIZE  # 0: a free place
        self._now = 0

    def __len__(self) -> int:
        """How many are remembered; looks at all."""
        return sum(1 for _ in self._remembered())

    def __contains__(self, place: Place) -> bool:
        return self._find(hash(place) & _WORD) is not None

    def resize(self, capacity: int) -> None:
        """Remember so many from now on. Memory is taken for the most that was ever asked for."""
        room = self._bucket_count * _BUCKET_SIZE // _SHARE_FILLED
        known = sorted(self._remembered()) if capacity > room else []
        self.capacity = capacity
        if capacity <= room:
            return
        self._bucket_count = -(-capacity * _SHARE_FILLED // _BUCKET_SIZE)
        self._hashes = array("Q", [0]) * (self._bucket_count * _BUCKET_SIZE)
        self._times = array("Q", [0]) * (self._bucket_count * _BUCKET_SIZE)
        for time, hash_ in known:
            self._put(hash_, time)

    def add(self, place: Place) -> None:
        """A slice left that is not remembered."""
        self._now += 1
        self._put(hash(place) & _WORD, self._now)

    def take(self, place: Place) -> bool:
        """Whether a slice is remembered; it is not any more."""
        index = self._find(hash(place) & _WORD)
        if index is None:
            return False
        self._times[index] = 0
        return True

    def _find(self, hash_: int) -> int | None:
        oldest = self._oldest_time()
        for index in self._bucket(hash_):
            if self._hashes[index] == hash_ and self._times[index] >= oldest:
                return index
        return None

    def _put(self, hash_: int, time: int) -> None:
        """Over itself, else into a free place of its bucket, else over what came there first.

        Over itself, for it may lie there too old to be remembered now, and not too old for a larger
        capacity later.
        """

        def claim(index: int) -> int:
            return -1 if self._hashes[index] == hash_ else self._times[index]

        index = min(self._bucket(hash_), key=claim)
        self._hashes[index], self._times[index] = hash_, time

    def _bucket(self, hash_: int) -> range:
        start = hash_ % self._bucket_count * _BUCKET_SIZE
        return range(start, start + _BUCKET_SIZE)

    def _oldest_time(self) -> int:
        """What came before it is not remembered; nor is a free place."""
        return max(self._now - self.capacity, 0) + 1

    def _remembered(self) -> Iterator[tuple[int, int]]:
        oldest = self._oldest_time()
        for time, hash_ in zip(self._times, self._hashes, strict=True):
            if time >= oldest:
                yield time, hash_
