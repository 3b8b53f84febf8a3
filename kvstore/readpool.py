"""Reading with several threads, and giving up: what is slow in a cold read is waiting for the disk.

Threads and `preadv` reach what the disk can do; hashing and copying let go of the interpreter's
lock, so they are shared too.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from kvstore.errors import ReadGivenUpError
from kvstore.extents import Extent

T = TypeVar("T")

_LEAST_PART_BYTES = 256 * 1024
"""Below, handing a part to another thread costs more than reading it."""


class Reading:
    """Whether what is being read is still wanted. Safe to use from many threads."""

    def __init__(self, *, deadline_s: float = math.inf) -> None:
        """Wanted until `deadline_s`, by time.perf_counter."""
        self._deadline_s = deadline_s
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """End the reads: what is in the disk's hands comes to its end, nothing new begins."""
        self._given_up.set()

    def check(self) -> None:
        """Return while it is wanted.

        Raises:
            ReadGivenUpError: it is not any more.
        """
        if self._given_up.is_set():
            raise ReadGivenUpError("nobody waits for it any more")
        if time.perf_counter() > self._deadline_s:
            raise ReadGivenUpError("its deadline passed")


class ReadPool:
    """Threads that read beside the one that asked. Shared by all readers of a process."""

    def __init__(
        self,
        thread_count: int,
        *,
        ahead_thread_count: int = 0,
        least_part_bytes: int = _LEAST_PART_BYTES,
    ) -> None:
        """Start no thread yet.

        Args:
            thread_count: that read at the same time, the asking one included; at least 1.
            ahead_thread_count: that read what may be wanted next; 0: nothing is read ahead.
            least_part_bytes: what a thread is given at least.
        """
        if thread_count < 1:
            raise ValueError(f"thread_count must be >= 1, got {thread_count}")
        self._thread_count = thread_count
        self._least_part_bytes = least_part_bytes
        self._threads = ThreadPoolExecutor(max(1, thread_count - 1), thread_name_prefix="read")
        # Of their own: what is wanted now does not wait behind a guess.
        self._ahead = ThreadPoolExecutor(max(1, ahead_thread_count), thread_name_prefix="ahead")
        self.reads_ahead = ahead_thread_count > 0

    def split(self, extents: Sequence[Extent]) -> list[list[Extent]]:
        """Cut a list into parts of about the same size, in order, one a thread at most."""
        sizes = [_byte_count(extent) for extent in extents]
        part_bytes = max(sum(sizes) / self._thread_count, self._least_part_bytes)
        parts: list[list[Extent]] = []
        filled_bytes = 0.0
        for extent, size in zip(extents, sizes, strict=True):
            if not parts or (
                filled_bytes >= part_bytes * len(parts) and len(parts) < self._thread_count
            ):
                parts.append([])
            parts[-1].append(extent)
            filled_bytes += size
        return parts

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run the tasks side by side; return their results in order, when none runs any more.

        Raises:
            Exception: of the first task, in order, that failed.
        """
        futures = [self._threads.submit(task) for task in tasks[1:]]
        try:
            results = [task() for task in tasks[:1]]
            for task, future in zip(tasks[1:], futures, strict=True):
                # What no thread has begun, the asking one does itself.
                results.append(task() if future.cancel() else future.result())
            return results
        finally:
            _end(futures)

    def submit_ahead(self, task: Callable[[], T]) -> Future[T]:
        """Run a task when one of the threads that read ahead is free."""
        return self._ahead.submit(task)

    def close(self) -> None:
        """Let the threads go; reads that run come to their end."""
        self._ahead.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _byte_count(extent: Extent) -> int:
    if extent.stored is not None:
        return extent.stored.nbytes
    return extent.keys.nbytes + extent.values.nbytes


def _end(futures: Sequence[Future[Any]]) -> None:
    """Return when no task runs: the arrays that they fill belong to the caller again."""
    for future in futures:
        future.cancel()
    wait(futures)
