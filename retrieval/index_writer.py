"""The writing end of a session's key index; see `index` for what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import IndexDamagedError
from retrieval.index_file import IndexFile, IndexLayout, Room
from retrieval.index_rows import Chunk, row_check
from retrieval.stored_rows import first_unsound_stored_row

DEFAULT_CHUNK_ROW_COUNT = 1024


class KeyIndexWriter:
    """Appends rows. One per session, in one process; not thread-safe."""

    def __init__(self, file: IndexFile) -> None:
        """Take over an open, writable `file`; use `create` or `open`."""
        self._file = file
        self._chunks: list[Chunk] = []

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        layer_count: int,
        dim: int,
        epoch: int,
        chunk_row_count: int = DEFAULT_CHUNK_ROW_COUNT,
    ) -> Self:
        """Put an empty index at `path`, in place of whatever was there.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
        """
        layout = IndexLayout(layer_count=layer_count, dim=dim, chunk_row_count=chunk_row_count)
        return cls(IndexFile.create(path, layout, epoch=epoch))

    @classmethod
    def open(cls, path: Path, *, layer_count: int, dim: int, epoch: int) -> Self:
        """Open the index at `path` and fence its readers off with a new `epoch`.

        `count` is then the number of rows up to the first that fails its checksum: after a power
        loss the count may have reached the disk, and rows before it not.

        Raises:
            IndexDamagedError: absent, foreign, torn, not readable, or of another geometry; `create`
                it.
        """
        file = IndexFile.open(path, writable=True)
        try:
            if (file.layout.layer_count, file.layout.dim) != (layer_count, dim):
                raise IndexDamagedError(
                    path,
                    f"its rows are {file.layout.layer_count} x {file.layout.dim}, "
                    f"this model's are {layer_count} x {dim}",
                )
            sound_count = first_unsound_stored_row(file, file.count)
        except BaseException:
            file.close()
            raise
        opened = cls(file)
        opened.truncate(sound_count, epoch)
        return opened

    def leave_free(self, min_free_bytes: int) -> None:
        """Grow no more, with ENOSPC, when less than this would be free on the file system."""
        self._file.min_free_bytes = min_free_bytes

    def grow_within(self, room: Room) -> None:
        """Ask `room` whenever the file has to grow; what it raises, `append` raises."""
        self._file.room = room

    @property
    def count(self) -> int:
        """Published rows."""
        return self._file.count

    @property
    def epoch(self) -> int:
        """Epoch under which this writer publishes."""
        return self._file.epoch

    @property
    def allocated_bytes(self) -> int:
        """Bytes that the file takes."""
        return self._file.allocated_bytes

    def append(self, rows: NDArray[np.float32]) -> None:
        """Append the next unit's row and publish it.

        Args:
            rows: (layer_count, dim) float32, finite: each layer's mean key before RoPE.

        Raises:
            ValueError: another shape or type, or a value is not finite.
            OSError: the file cannot grow; nothing was published.
        """
        layout = self._file.layout
        expected = (layout.layer_count, layout.dim)
        if rows.shape != expected or rows.dtype != np.float32:
            raise ValueError(f"rows must be float32 {expected}, got {rows.dtype} {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("rows must be finite")
        count = self._file.count
        chunk_index, row_index = divmod(count, layout.chunk_row_count)
        chunk = self._chunk(chunk_index)
        chunk.rows[:, row_index] = rows
        chunk.checks[row_index] = row_check(count, np.ascontiguousarray(rows))
        self._file.count = count + 1

    def truncate(self, count: int, epoch: int) -> None:
        """Cut the index to `count` rows under a new `epoch`.

        The epoch is stored first: a reader that could see a row of the new history also sees that
        its own epoch is over. The cut rows' checksums are voided down to the disk, so that no
        crash brings them back.

        Raises:
            ValueError: count is not in [0, self.count].
        """
        old_count = self._file.count
        if not 0 <= count <= old_count:
            raise ValueError(f"count must be in [0, {old_count}], got {count}")
        self._file.epoch = epoch
        self._file.count = count
        chunk_row_count = self._file.layout.chunk_row_count
        for chunk_index in range(count // chunk_row_count, -(-old_count // chunk_row_count)):
            start = max(0, count - chunk_index * chunk_row_count)
            self._chunk(chunk_index).checks[start:] = 0
        self._file.sync()

    def sync(self) -> None:
        """Wait until what was published is on the disk.

        Raises:
            OSError: the disk failed.
        """
        self._file.sync()

    def close(self) -> None:
        """Write everything down and let go of the file; what was published stays."""
        self._chunks.clear()
        try:
            self._file.sync()
        finally:
            self._file.close()

    def _chunk(self, chunk_index: int) -> Chunk:
        if len(self._chunks) <= chunk_index:
            self._chunks = self._file.map_chunks(chunk_index + 1)
        return self._chunks[chunk_index]
