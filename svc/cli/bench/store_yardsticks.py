"""What the store is measured against: the bare memory and the bare disk, at the same sizes."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvstore.aligned import aligned_empty
from kvstore.hugemap import HUGE_PAGE_BYTES, HugeMap, put_huge_pages

_PAGE_BYTES = 4096
_RING_SLICES = 128
_CHUNK_BYTES = 1 << 20


def seconds(work: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Memcpy:
    """Copying slices that lie apart in memory into buffers of two layers, as for a question."""

    def __init__(self, slice_bytes: int, slice_count: int, seed: int = 0) -> None:
        """Fills memory of `slice_count` slices, so that no page is met for the first time later."""
        self._slices = np.ones((slice_count, slice_bytes), np.uint8)
        self._order = np.random.default_rng(seed).permutation(slice_count)
        self._out = np.ones((_RING_SLICES, slice_bytes), np.uint8)

    def bytes_per_s(self, byte_count: int) -> float:
        """Returns the rate at which this many bytes are copied, in one thread."""
        slices, order, out = self._slices, self._order, self._out
        count = max(1, byte_count // slices.shape[1])
        picks = [int(order[index % len(order)]) for index in range(count)]

        def copy() -> None:
            for index, pick in enumerate(picks):
                out[index % _RING_SLICES] = slices[pick]

        return count * slices.shape[1] / seconds(copy)


def copy_seconds(byte_count: int) -> Callable[[], float]:
    """Returns what times one copy of an array of this many bytes; its pages are met before."""
    source = np.ones(byte_count, np.uint8)
    target = np.ones_like(source)
    return lambda: seconds(lambda: np.copyto(target, source))


def drop_cached(paths: Sequence[Path]) -> None:
    """Drops files from this machine's page cache (what lies below a virtual disk keeps its own)."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def warm_up(paths: Sequence[Path]) -> None:
    """Reads files through the page cache, so that what fits lies there."""
    for path in paths:
        with open(path, "rb") as file:
            while file.read(_CHUNK_BYTES):
                pass


class DirectReads:
    """Random reads past the page cache, in several threads."""

    def __init__(self, paths: Sequence[Path], read_bytes: int, *, threads: int) -> None:
        """`read_bytes` must be a multiple of the page size, which O_DIRECT asks for.

        Raises:
            OSError: the file system does not take O_DIRECT.
        """
        self._fds = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
        self._read_bytes = read_bytes
        self._places = [
            (fd, offset)
            for fd in self._fds
            for offset in range(0, os.fstat(fd).st_size - read_bytes, read_bytes)
        ]
        self._threads = threads

    def bytes_per_s(self, byte_count: int, rng: np.random.Generator) -> float:
        """Returns the rate at which this many bytes come from places drawn at random."""
        count = min(byte_count // self._read_bytes, len(self._places))
        picks = rng.choice(len(self._places), count, replace=False)

        def read(part: NDArray[np.int64]) -> None:
            with mmap.mmap(-1, self._read_bytes) as buffer:  # page-aligned, as O_DIRECT asks for
                for pick in part.tolist():
                    fd, offset = self._places[pick]
                    if os.preadv(fd, [buffer], offset) != self._read_bytes:
                        raise OSError(f"a read at {offset} came back short")

        with ThreadPoolExecutor(self._threads) as pool:
            taken_s = seconds(lambda: list(pool.map(read, np.array_split(picks, self._threads))))
        return count * self._read_bytes / taken_s

    def close(self) -> None:
        """Closes the files."""
        for fd in self._fds:
            os.close(fd)


class CheckedReads:
    """Slices read from the page cache and hashed, in one thread: a loop, and no store."""

    def __init__(self, paths: Sequence[Path], read_bytes: int) -> None:
        """`read_bytes`: of a slice; they lie one behind the other."""
        self._fds = [os.open(path, os.O_RDONLY) for path in paths]
        self._read_bytes = read_bytes
        self._places = [
            (fd, offset)
            for fd in self._fds
            for offset in range(_PAGE_BYTES, os.fstat(fd).st_size - read_bytes, read_bytes)
        ]
        self._out = aligned_empty((_RING_SLICES, read_bytes), np.uint8)
        self._out[:] = 1

    def bytes_per_s(self, byte_count: int, rng: np.random.Generator) -> float:
        """Returns the rate at which this many bytes come from places drawn at random."""
        picks = rng.integers(0, len(self._places), byte_count // self._read_bytes).tolist()

        def read() -> None:
            for index, pick in enumerate(picks):
                fd, offset = self._places[pick]
                target = self._out[index % _RING_SLICES].data
                os.preadv(fd, [target], offset)
                xxhash.xxh3_64_intdigest(target)

        return len(picks) * self._read_bytes / seconds(read)

    def close(self) -> None:
        """Closes the files."""
        for fd in self._fds:
            os.close(fd)


class BareReads:
    """A loop of reads of a few bytes from the page cache: a system call from Python, no more."""

    def __init__(self, path: Path, count: int) -> None:
        """`count`: reads of one run."""
        self._fd = os.open(path, os.O_RDONLY)
        self._count = count
        self._buffer = bytearray(1)

    def read(self) -> None:
        """Reads so many times."""
        for index in range(self._count):
            os.preadv(self._fd, [self._buffer], index)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def raw_append_bytes_per_s(
    folder: Path,
    block_bytes: int,
    block_count: int,
    *,
    writers: int,
    direct: bool,
    huge: bool = False,
) -> float:
    """Returns the rate of writers that each append blocks to a file, with a sync after each.

    A block is what `block_bytes` says, up to the next page; `huge`: it lies in huge pages, where
    the kernel has them. The files are removed.
    """
    span = -(-block_bytes // _PAGE_BYTES) * _PAGE_BYTES
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0)

    def write(path: Path) -> None:
        fd = os.open(path, flags, 0o600)
        try:
            for index in range(block_count):
                if os.pwritev(fd, [block], index * span) != span:
                    raise OSError("the disk took less than it was given")
                os.fdatasync(fd)
        finally:
            os.close(fd)

    with _aligned(span, huge=huge) as block, ThreadPoolExecutor(writers) as pool:
        paths = [folder / f"raw-{index}" for index in range(writers)]
        try:
            taken_s = seconds(lambda: list(pool.map(write, paths)))
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
    return writers * block_count * span / taken_s


def bare_append_bytes_per_s(
    folder: Path, block_bytes: int, slice_bytes: int, block_count: int
) -> float:
    """Returns the rate at which one thread can append: slices are copied and hashed, then their
    block is written past the page cache, with a sync after each. The file is removed.

    Raises:
        OSError: the file system does not take O_DIRECT.
    """
    span = block_bytes // slice_bytes * slice_bytes
    path = folder / "bare"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)

    def append() -> None:
        for index in range(block_count):
            for start in range(0, span, slice_bytes):
                part = target[start : start + slice_bytes]
                part[:] = source[start : start + slice_bytes]
                xxhash.xxh3_64_intdigest(part.data)
            if os.pwritev(fd, [target.data], index * span) != span:
                raise OSError("the disk took less than it was given")
            os.fdatasync(fd)

    with _aligned(span) as block:
        source, target = np.frombuffer(bytes(block), np.uint8), aligned_empty((span,), np.uint8)
        target[:] = 1
        try:
            os.posix_fallocate(fd, 0, block_count * span)
            taken_s = seconds(append)
        finally:
            os.close(fd)
            path.unlink()
    return block_count * span / taken_s


@contextmanager
def _aligned(byte_count: int, *, huge: bool = False) -> Iterator[memoryview]:
    """Memory that starts on a page and holds no zeros, which a clever disk would not write."""
    size = -(-byte_count // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    fd = os.memfd_create("block")
    try:
        os.posix_fallocate(fd, 0, size)
        mapped = HugeMap(fd, size, writable=True).data[:byte_count]
        mapped[:] = np.frombuffer(np.random.default_rng(0).bytes(byte_count), np.uint8)
        if huge:
            put_huge_pages(fd, size)
    finally:
        os.close(fd)
    yield mapped.data
