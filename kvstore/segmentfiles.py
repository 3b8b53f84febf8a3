"""A reader's open segment files: a bounded set, least recently used closed first."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
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
from kvstore.paths import segment_path

logger = logging.getLogger(__name__)

_MAX_OPEN = 16


def _log_refusal(error: OSError) -> None:
    logger.warning(
        "the disk takes no direct reads, slices are read through the page cache",
        extra={"error": str(error)},
    )


class OpenFile:
    """One segment file, open for reading."""

    __slots__ = ("_direct_fd", "_takes_direct", "fd", "kept", "users")

    def __init__(self, path: Path, *, direct: bool) -> None:
        """Open it.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be opened; EINVAL: not for direct reads.
        """
        self.fd = os.open(path, os.O_RDONLY)
        self._direct_fd = -1
        self._takes_direct = direct
        self.users = 0
        self.kept = True
        """False once it was forgotten: the last user closes it."""
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
        byte_count = sum(array.nbytes for array in arrays)
        if self._takes_direct and not in_page_cache(self.fd, byte_count, offset):
            try:
                return read_direct(self._direct_fd, arrays, offset)
            except OSError as error:
                if not refuses_direct(error):
                    raise
                self._takes_direct = False
                _log_refusal(error)
        return os.preadv(self.fd, [array.data for array in arrays], offset)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.fd)
        if self._direct_fd >= 0:
            os.close(self._direct_fd)


class SegmentFiles:
    """Descriptors of one session's segments, shared by threads."""

    def __init__(self, folder: Path, disk_io: DiskMode = "auto") -> None:
        """`disk_io`: how slices are read."""
        self._folder = folder
        self._direct = reads_direct(disk_io, folder)
        self._lock = threading.Lock()
        self._files: OrderedDict[int, OpenFile] = OrderedDict()

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
        with self._lock:
            file = self._files.get(number)
            if file is None:
                file = self._open(segment_path(self._folder, number))
                self._files[number] = file
            self._files.move_to_end(number)
            file.users += 1
            self._close_surplus()
        try:
            yield file
        finally:
            with self._lock:
                file.users -= 1
                if file.users == 0 and not file.kept:
                    file.close()

    def _open(self, path: Path) -> OpenFile:
        if self._direct:
            try:
                return OpenFile(path, direct=True)
            except OSError as error:
                if not refuses_direct(error):
                    raise
                self._direct = False
                _log_refusal(error)
        return OpenFile(path, direct=False)

    def _close_surplus(self) -> None:
        surplus = len(self._files) - _MAX_OPEN
        idle = [number for number, file in self._files.items() if file.users == 0]
        self._drop(idle[: max(surplus, 0)])

    def forget(self, first_number: int) -> None:
        """Let go of segments from `first_number` on: a new writer may have replaced them."""
        with self._lock:
            self._drop([number for number in self._files if number >= first_number])

    def forget_one(self, number: int) -> None:
        """Let go of a segment that was written anew, so that the old one's space is free."""
        with self._lock:
            self._drop([number] if number in self._files else [])

    def forget_before(self, stop_number: int) -> None:
        """Let go of segments that were dropped, so that their space is free."""
        with self._lock:
            self._drop([number for number in self._files if number < stop_number])

    def close(self) -> None:
        """Let go of all; a read that is running finishes."""
        with self._lock:
            self._drop(list(self._files))

    def _drop(self, numbers: list[int]) -> None:
        for number in numbers:
            file = self._files.pop(number)
            file.kept = False
            if file.users == 0:
                file.close()
