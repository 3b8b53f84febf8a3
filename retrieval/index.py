"""The key index of a session: per layer one float32 row per unit, searched exactly.

One process appends (`index_writer`), any number of processes and threads read
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
from retrieval.index_file import IndexFile
from retrieval.index_rows import Chunk
from retrieval.selection import best
from retrieval.stored_rows import first_unsound_stored_row

# By number: `faiss.swig_ptr` looks at each array anew, which for a chunk takes as long as its sums.
_float_at = faiss.cast_integer_to_float_ptr  # type: ignore[attr-defined]  # in the SWIG part


def _address(array: NDArray[np.float32]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


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
        target, asked = _address(out), _float_at(_address(query))
        for rows in self._slices(layer, count):
            faiss.fvec_inner_products_ny(  # type: ignore[attr-defined]  # it is in the SWIG part
                _float_at(target), asked, _float_at(_address(rows)), query.size, len(rows)
            )
            target += 4 * len(rows)
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
