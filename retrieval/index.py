"""The key index of a session: per layer one float32 row per unit, searched exactly.

One process appends (`KeyIndexWriter`), any number of processes and threads read
(`KeyIndexReader`), through a shared mapping of one file; see `index_file` for how it lies there.
A row is written, then the count is published, so "not after t" is a prefix [0, count).
The index is derived from the stored keys: whoever finds it damaged creates it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.checked_rows import CheckedRows
from retrieval.errors import EpochChangedError, IndexDamagedError, IndexShortError
from retrieval.index_file import IndexFile, IndexLayout
from retrieval.index_rows import Chunk, row_check
from retrieval.selection import best
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


class KeyIndexReader:
    """Searches the rows. Safe to use from many threads; writes nothing."""

    def __init__(self, file: IndexFile) -> None:
        """Take over an open `file`; use `open`."""
        self._file = file
        self._epoch = file.epoch
        self._rows = CheckedRows(file)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the index at `path` under its present epoch.

        Raises:
            IndexDamagedError: absent, foreign or torn.
        """
        return cls(IndexFile.open(path, writable=False))

    @property
    def epoch(self) -> int:
        """Epoch at which this reader was opened; all its answers are of this epoch."""
        return self._epoch

    @property
    def count(self) -> int:
        """Published rows, now.

        Raises:
            EpochChangedError: a writer has recovered the session since.
        """
        count = self._file.count
        self._check_epoch()
        return count

    def require_epoch(self, epoch: int) -> None:
        """Raise EpochChangedError unless this reader, and the file, are of `epoch`."""
        self._check_epoch()
        if epoch != self._epoch:
            raise EpochChangedError(self._file.path, opened_epoch=self._epoch, epoch=epoch)

    @property
    def layer_count(self) -> int:
        """Layers of a row."""
        return self._file.layout.layer_count

    @property
    def dim(self) -> int:
        """Values of a row in one layer."""
        return self._file.layout.dim

    def check(self, count: int) -> None:
        """Check the first `count` rows, as far as no earlier read of this reader has.

        Reads them all, once: a caller that must not wait for a disk lets another thread do it, and
        reads rows that are checked meanwhile.

        Raises:
            IndexShortError: fewer rows are published.
            IndexDamagedError: a row fails its checksum.
            EpochChangedError: a writer recovered the session meanwhile.
        """
        self._checked_chunks(count)
        self._check_epoch()

    def check_stored(self, count: int) -> None:
        """Check the first `count` rows by reads: what the disk cannot read is an error, no SIGBUS.

        Reads them all at every call, and spares later reads nothing.

        Raises:
            IndexShortError: fewer rows are published.
            IndexDamagedError: a row cannot be read, or fails its checksum.
            EpochChangedError: a writer recovered the session meanwhile.
        """
        self._check_published(count)
        try:
            sound_count = first_unsound_stored_row(self._file, count)
        except IndexDamagedError:
            self._check_epoch()
            raise
        self._check_epoch()
        if sound_count < count:
            raise IndexDamagedError(self._file.path, f"its row {sound_count} fails its checksum")

    def scores(self, layer: int, query: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """Return the inner product of `query` with each of the first `count` rows.

        Args:
            layer: in [0, layer_count).
            query: (dim,) float32.
            count: how many rows, from the start, belong to the snapshot.

        Returns:
            (count,) float32. Rows at and after `count` have no influence.

        Raises:
            IndexShortError: fewer rows are published.
            IndexDamagedError: a row fails its checksum; see `check`.
            EpochChangedError: a writer recovered the session meanwhile.
        """
        query = self._checked(layer, query)
        out = np.empty(count, np.float32)
        start = 0
        for rows in self._slices(layer, count):
            stop = start + len(rows)
            faiss.fvec_inner_products_ny(  # type: ignore[attr-defined]  # it is in the SWIG part
                faiss.swig_ptr(out[start:stop]),
                faiss.swig_ptr(query),
                faiss.swig_ptr(rows),
                query.size,
                len(rows),
            )
            start = stop
        self._check_epoch()
        return out

    def top_k(
        self, layer: int, query: NDArray[np.float32], count: int, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the min(k, count) best of the first `count` rows, best first, newer at a tie.

        Returns:
            (indices, scores), the scores as `scores` gives them.

        Raises:
            ValueError: k < 1.
            IndexShortError, IndexDamagedError, EpochChangedError: as for `scores`.
        """
        if k < 1:
            raise ValueError(f"k must be >= 1, got {k}")
        scores = self.scores(layer, query, count)
        found = best(scores, k)
        return found, scores[found]

    def close(self) -> None:
        """Let go of the file. No other thread may be reading."""
        self._rows.close()
        self._file.close()

    def _checked(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        layout = self._file.layout
        if not 0 <= layer < layout.layer_count:
            raise ValueError(f"layer must be in [0, {layout.layer_count}), got {layer}")
        if query.shape != (layout.dim,) or query.dtype != np.float32:
            expected = f"float32 ({layout.dim},)"
            raise ValueError(f"query must be {expected}, got {query.dtype} {query.shape}")
        return np.ascontiguousarray(query)

    def _slices(self, layer: int, count: int) -> list[NDArray[np.float32]]:
        """Return the first `count` rows of a layer as contiguous views, chunk by chunk."""
        size = self._file.layout.chunk_row_count
        return [
            chunk.rows[layer, : min(size, count - index * size)]
            for index, chunk in enumerate(self._checked_chunks(count))
        ]

    def _checked_chunks(self, count: int) -> list[Chunk]:
        """Return the chunks of the first `count` rows, all of which pass their checksums."""
        self._check_published(count)
        try:
            return self._rows.chunks(count)
        except IndexDamagedError:
            self._check_epoch()  # a cut voids checksums
            raise

    def _check_published(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"count must be >= 0, got {count}")
        published = self.count
        if count > published:
            raise IndexShortError(self._file.path, asked_count=count, row_count=published)

    def _check_epoch(self) -> None:
        epoch = self._file.epoch
        if epoch != self._epoch:
            raise EpochChangedError(self._file.path, opened_epoch=self._epoch, epoch=epoch)
