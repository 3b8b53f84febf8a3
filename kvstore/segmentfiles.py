"""A reader's open segment files: a bounded set, least recently used closed first."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvstore.paths import segment_path

_MAX_OPEN = 16


class _OpenFile:
    __slots__ = ("fd", "kept", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 0
        self.kept = True
        """False once it was forgotten: the last user closes it."""


class SegmentFiles:
    """Descriptors of one session's segments, shared by threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()

    @contextmanager
    def use(self, number: int) -> Iterator[int]:
        """The descriptor of a segment, which stays open for as long as it is used.

        Raises:
            FileNotFoundError: the segment is not there and was not open.
        """
        with self._lock:
            file = self._files.get(number)
            if file is None:
                fd = os.open(segment_path(self._folder, number), os.O_RDONLY)
                # Slices are read whole and lie apart: what lies behind one is not wanted.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                file = _OpenFile(fd)
                self._files[number] = file
            self._files.move_to_end(number)
            file.users += 1
            self._close_surplus()
        try:
            yield file.fd
        finally:
            with self._lock:
                file.users -= 1
                if file.users == 0 and not file.kept:
                    os.close(file.fd)

    def _close_surplus(self) -> None:
        surplus = len(self._files) - _MAX_OPEN
        idle = [number for number, file in self._files.items() if file.users == 0]
        self._drop(idle[: max(surplus, 0)])

    def forget(self, first_number: int) -> None:
        """Let go of segments from `first_number` on: a new writer may have replaced them."""
        with self._lock:
            self._drop([number for number in self._files if number >= first_number])

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
                os.close(file.fd)
