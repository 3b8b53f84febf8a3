"""8-byte words of shared memory that are kept three times: what two copies say counts.

So a flipped bit changes nothing. A reader that comes between a writer's stores, or after a writer
that was killed there, gets the old word or the new one without waiting for anybody: of the three
stores, the second changes the answer.
"""

from __future__ import annotations

import mmap
import time
from pathlib import Path

from kvstore.errors import ControlCorruptError

_COPY_COUNT = 3
# The copies of a word differ for good only when two of them are damaged.
_TRIES, _TRY_S = 50, 0.002


class TripleWords:
    """The first bytes of a mapping as words, in three copies, one behind the other."""

    def __init__(self, mapping: mmap.mmap, path: Path, *, word_count: int) -> None:
        """`path`: of the mapped file, for errors."""
        self._words = memoryview(mapping)[: 8 * word_count * _COPY_COUNT].cast("Q")
        self._word_count = word_count
        self._path = path

    @staticmethod
    def pack(words: list[int]) -> bytes:
        """The bytes that stand for these words."""
        return b"".join(word.to_bytes(8, "little") for word in words * _COPY_COUNT)

    def __getitem__(self, place: int) -> int:
        """What two of the copies say.

        Raises:
            ControlCorruptError: each says something else, for longer than a writer takes.
        """
        words, step = self._words, self._word_count
        for _ in range(_TRIES):
            first, second = words[place], words[place + step]
            if first == second:
                return first
            third = words[place + 2 * step]
            if third in (first, second):
                return third
            time.sleep(_TRY_S)
        raise ControlCorruptError(self._path, place)

    def __setitem__(self, place: int, value: int) -> None:
        """Store a word, from one thread at a time."""
        words, step = self._words, self._word_count
        words[place] = value
        words[place + step] = value
        words[place + 2 * step] = value

    def release(self) -> None:
        """Let go of the mapping."""
        self._words.release()
