"""A reader's open segment files: those of a pool that all readers of the process share."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.directio import (
    DiskMode,
    in_page_cache,
    read_direct,
    reads_direct,
    refuses_direct,
)
from kvstore.filepool import FilePool
from kvstore.paths import segment_path
from kvstore.readonce import LEAST_BYTES, ReadOnce

logger = logging.getLogger(__name__)


def _log_refusal(error: OSError) -> None:
    logger.warning(
        "the disk takes no direct reads, slices are read through the page cache",
        extra={"error": str(error)},
    )


class OpenFile:
    """One segment file, open for reading."""

    __slots__ = ("_direct_fd", "_number", "_once", "_takes_direct", "fd", "kept", "user_count")

    def __init__(
        self, path: Path, *, direct: bool, number: int = 0, once: ReadOnce | None = None
    ) -> None:
        """Open it.

        Args:
            path: of the file.
            direct: what is not in the page cache is read past it.
            number: of the segment.
            once: the first time only.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be opened; EINVAL: not for direct reads.
        """
        self.fd = os.open(path, os.O_RDONLY)
        self._direct_fd = -1
        self._takes_direct = direct
        self._number = number
        self._once = once
        self.user_count = 0
        self.kept = True
        # Slices are read whole and lie apart: what lies behind one is not wanted.
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)
        if direct:
            try:
                # Not by its name, which another file may have by now.
                flags = os.O_RDONLY | os.O_DIRECT
                self._direct_fd = os.open(f"/proc/self/fd/{self.fd}", flags)
            except OSError:
                os.close(self.fd)
                raise

    def read(self, arrays: Sequence[np.ndarray[Any, Any]], offset: int) -> int:
        """Fill arrays, one after the other; return the bytes that were there.

        Raises:
            OSError: the disk failed.
        """
        if self._takes_direct:
            byte_count = sum([array.nbytes for array in arrays])
            try:
                if self._is_for_direct(offset, byte_count):
                    return read_direct(self._direct_fd, arrays, offset)
            except OSError as error:
                if not refuses_direct(error):
                    raise
                self._takes_direct = False
                _log_refusal(error)
        return os.preadv(self.fd, arrays, offset)  # type: ignore[arg-type]  # typed as buffers

    def _is_for_direct(self, offset: int, byte_count: int) -> bool:
        once = self._once
        if once is not None and (
            byte_count < LEAST_BYTES or not once.is_first(self._number, offset)
        ):
            return False
        return not in_page_cache(self.fd, byte_count, offset)

    @property
    def descriptor_count(self) -> int:
        """One, and one more for direct reads."""
        return 1 if self._direct_fd < 0 else 2

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.fd)
        if self._direct_fd >= 0:
            os.close(self._direct_fd)


PROCESS_FILES: FilePool[OpenFile] = FilePool()
"""The pool of readers that are given no other."""


class SegmentFiles:
    """Descriptors of one session's segments, shared by threads."""

    def __init__(
        self,
        folder: Path,
        disk_io: DiskMode = "auto",
        pool: FilePool[OpenFile] = PROCESS_FILES,
    ) -> None:
        """`disk_io`: how slices are read; `pool`: where files stay open between reads."""
        self._folder = folder
        self._direct = reads_direct(disk_io, folder)
        self._once = ReadOnce() if disk_io == "auto" else None
        self._pool = pool
        self._number = pool.number()
        self._opening = threading.Lock()
        """Held while a file is opened or forgotten: none is kept that was opened before."""

    @contextmanager
    def use(self, number: int) -> Iterator[int]:
        """The descriptor of a segment, which stays open for as long as it is used.

        Raises:
            FileNotFoundError: the segment is not there and was not open.
        """
        with self.lend(number) as file:
            yield file.fd

    @contextmanager
    def lend(self, number: int) -> Iterator[OpenFile]:
        """A segment, which stays open for as long as it is used.

        Raises:
            FileNotFoundError: the segment is not there and was not open.
        """
        file = self._pool.borrow((self._number, number)) or self._borrow_anew(number)
        try:
            yield file
        finally:
            self._pool.give_back(file)

    def _borrow_anew(self, number: int) -> OpenFile:
        key = (self._number, number)
        with self._opening:
            file = self._pool.borrow(key)  # another thread may have been faster
            if file is None:
                file = self._open(number)
                self._pool.add(key, file)
            return file

    def _open(self, number: int) -> OpenFile:
        path = segment_path(self._folder, number)
        if self._direct:
            try:
                return OpenFile(path, direct=True, number=number, once=self._once)
            except OSError as error:
                if not refuses_direct(error):
                    raise
                self._direct = False
                _log_refusal(error)
        return OpenFile(path, direct=False)

    def forget(self, first_number: int) -> None:
        """Let go of segments from `first_number` on: a new writer may have replaced them."""
        self._forget(lambda number: number >= first_number)

    def forget_one(self, number: int) -> None:
        """Let go of a segment that was written anew, so that the old one's space is free."""
        self._forget(lambda other: other == number)

    def forget_before(self, stop_number: int) -> None:
        """Let go of segments that were dropped, so that their space is free."""
        self._forget(lambda number: number < stop_number)

    def close(self) -> None:
        """Let go of all; a read that is running finishes."""
        self._forget(lambda _: True)

    def _forget(self, wanted: Callable[[int], bool]) -> None:
        with self._opening:
            self._pool.forget(self._number, wanted)
