"""The rows of an index that is open for reading, mapped, each checked once before it is used.

Whoever reads rows that are checked waits for nobody. Checking goes on in steps, so that of two
readers neither waits for all that the other asks for.
"""

from __future__ import annotations

import threading

from retrieval.errors import IndexDamagedError
from retrieval.index_file import IndexFile
from retrieval.index_rows import Chunk, first_unsound_row

_ROWS_PER_STEP = 256


class CheckedRows:
    """Rows [0, n) that have passed their checksums, for a growing n. Thread-safe."""

    def __init__(self, file: IndexFile) -> None:
        """`file` stays the caller's."""
        self._file = file
        self._chunks: list[Chunk] = []
        self._sound_count = 0
        self._growing = threading.Lock()

    def chunks(self, count: int) -> list[Chunk]:
        """Return the chunks of the first `count` published rows, checked.

        Raises:
            IndexDamagedError: a row fails its checksum, perhaps because a writer voided it.
        """
        # Read without the lock: the count grows after the list that covers it is in place.
        while self._sound_count < count:
            self._step(count)
        return self._chunks[: self._file.layout.chunk_count(count)]

    def close(self) -> None:
        """Let go of the mapping. No other thread may be reading."""
        self._chunks.clear()

    def _step(self, count: int) -> None:
        with self._growing:
            start = self._sound_count
            stop = min(count, start + _ROWS_PER_STEP)
            if start >= stop:
                return
            needed = self._file.layout.chunk_count(count)
            if len(self._chunks) < needed:
                self._chunks = self._file.map_chunks(needed)
            sound_count = first_unsound_row(self._chunks, start, stop)
            self._sound_count = sound_count
        if sound_count < stop:
            raise IndexDamagedError(self._file.path, f"its row {sound_count} fails its checksum")
