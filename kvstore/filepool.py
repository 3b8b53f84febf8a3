"""The segment files that readers hold open: so many descriptors at most, shared by a process."""

from __future__ import annotations

import itertools
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

MOST_DESCRIPTORS = 128
"""What open segment files of all readers of a process may take, however many sessions there are."""
_LARGEST_PART = 4
"""Where a process may open few files, at most one in so many is a segment."""


def descriptor_limit() -> int:
    """Descriptors for segment files, as this process may open files now: at least 1."""
    may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if may_open == resource.RLIM_INFINITY:
        return MOST_DESCRIPTORS
    return max(1, min(MOST_DESCRIPTORS, may_open // _LARGEST_PART))


class Pooled(Protocol):
    """What a pool keeps."""

    user_count: int
    """Who borrowed it and did not give it back; the pool's to change."""
    kept: bool
    """False once it was let go of, and the last user closes it; the pool's to change."""

    @property
    def descriptor_count(self) -> int:
        """Descriptors that it takes while it is open; always the same."""
        ...

    def close(self) -> None:
        """Close them."""
        ...


F = TypeVar("F", bound=Pooled)
Key = tuple[int, int]
"""The number of a session's files, and that of a segment."""


class FilePool(Generic[F]):
    """Open files, the least recently used closed first. Safe to use from many threads.

    What is in use is never closed, so what is open exceeds the limit at most by what is in use at
    once: one file a thread. No lock is held while a file is opened or closed: a disk that hangs
    stops nobody else.
    """

    def __init__(self, limit: Callable[[], int] = descriptor_limit) -> None:
        """`limit`: descriptors that may stay open; asked whenever a file is added."""
        self._limit = limit
        self._last_limit = 0
        self._lock = threading.Lock()
        self._files: OrderedDict[Key, F] = OrderedDict()
        self._descriptor_count = 0
        self._numbers = itertools.count()

    @property
    def descriptor_count(self) -> int:
        """Descriptors of the files that are kept."""
        return self._descriptor_count

    def number(self) -> int:
        """A number that no other session's files have."""
        return next(self._numbers)

    def borrow(self, key: Key) -> F | None:
        """A file that is kept; it stays open until it is given back."""
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                file.user_count += 1
                self._files.move_to_end(key)
            return file

    def add(self, key: Key, file: F) -> None:
        """Keep a file that was just opened, under a key that has none. It is borrowed, too."""
        limit = self._limit()
        with self._lock:
            self._last_limit = limit
            file.user_count += 1
            self._files[key] = file
            self._descriptor_count += file.descriptor_count
            unused = self._take(self._surplus())
        _close(unused)

    def give_back(self, file: F) -> None:
        """The borrower is done with it."""
        with self._lock:
            file.user_count -= 1
            unused = [file] if file.user_count == 0 and not file.kept else []
            if self._descriptor_count > self._last_limit:
                unused += self._take(self._surplus())
        if unused:
            _close(unused)

    def forget(self, number: int, wanted: Callable[[int], bool]) -> None:
        """Let go of a session's segments of wanted numbers; who borrowed one may read on."""
        with self._lock:
            keys = [key for key in self._files if key[0] == number and wanted(key[1])]
            unused = self._take(keys)
        _close(unused)

    def _surplus(self) -> list[Key]:
        """What was not used for longest, and is not now, of what is beyond the limit."""
        keys: list[Key] = []
        surplus = self._descriptor_count - self._last_limit
        for key, file in self._files.items():
            if surplus <= 0:
                break
            if file.user_count == 0:
                keys.append(key)
                surplus -= file.descriptor_count
        return keys

    def _take(self, keys: list[Key]) -> list[F]:
        """Keep these no more; return those that nobody uses, for the caller to close."""
        unused: list[F] = []
        for key in keys:
            file = self._files.pop(key)
            file.kept = False
            self._descriptor_count -= file.descriptor_count
            if file.user_count == 0:
                unused.append(file)
        return unused


def _close(files: list[F]) -> None:
    for file in files:
        file.close()
