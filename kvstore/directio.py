"""Going past the page cache: whole pages, to and from memory that starts on a page.

A block is full pages on disk. What of it, or of a slice, starts and ends with a page on disk and in
memory goes straight; anything else by way of aligned memory.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kvstore.aligned import ALIGN_BYTES
from kvstore.diskio import Buffer, DiskIO, file_system_of, write_fully

DiskMode = Literal["auto", "direct", "buffered"]
"""direct: past the page cache where the file system takes it. buffered: through it. auto: what was
measured to be better, as ARCHITECTURE.md says with figures: blocks are written through the cache
unless a tier of memory keeps them, and slices that are not in it read past it the first time (see
`readonce`)."""

_FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
"""Where O_DIRECT means what it says; others take it and do nothing, refuse it, or lie."""
_SCRATCH_BYTES = 4 << 20
"""What is written or read at once; a thread that does either keeps so much memory."""

_SYS_CACHESTAT = 451  # of every machine but alpha
_libc = ctypes.CDLL(None)

Array = np.ndarray[Any, Any]


def appends_direct(mode: DiskMode, folder: Path, io: DiskIO, *, kept: bool) -> bool:
    """Whether blocks are written past the page cache.

    `kept`: a tier of memory keeps what is written, so the page cache need not.
    """
    wanted = mode == "direct" or (mode == "auto" and kept)
    return wanted and io.file_system(folder) in _FILE_SYSTEMS


def reads_direct(mode: DiskMode, folder: Path) -> bool:
    """Whether what is not in the page cache is read past it, at the first time at least."""
    return mode != "buffered" and file_system_of(folder) in _FILE_SYSTEMS


def refuses_direct(error: OSError) -> bool:
    """Whether an error says that the file takes no direct I/O: nothing was read or written."""
    return error.errno in (errno.EINVAL, errno.EOPNOTSUPP)


class _Scratch(threading.local):
    """Memory of one thread that starts on a page."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def take(self) -> Array:
        """(_SCRATCH_BYTES,) uint8, valid until this thread asks again."""
        if self._memory is None:
            self._memory = mmap.mmap(-1, _SCRATCH_BYTES)
        return np.frombuffer(self._memory, np.uint8)


_scratch = _Scratch()


def write_direct(io: DiskIO, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write all buffers, one after the other, as `write_fully` does.

    What lies on whole pages and comes to whole pages is written from where it is; the rest is
    gathered in aligned memory.

    Args:
        io: the system calls.
        fd: opened for direct I/O.
        buffers: that come to whole pages together.
        offset: of a page.

    Raises:
        OSError: as from `write_fully`; EINVAL: the file takes no direct I/O.
    """
    scratch = _scratch.take()
    start = filled = 0  # scratch[start:filled] is gathered, and not among the pieces yet
    pieces: list[Buffer] = []

    def write() -> None:
        nonlocal offset
        write_fully(io, fd, pieces, offset)
        offset += sum(memoryview(piece).nbytes for piece in pieces)
        pieces.clear()

    for buffer in buffers:
        source = np.frombuffer(buffer, np.uint8)
        if (filled - start) % ALIGN_BYTES == 0 and _is_whole_pages(source):
            if filled > start:
                pieces.append(scratch[start:filled].data)
                start = filled
            pieces.append(source.data)
            continue
        taken = 0
        while taken < len(source):
            part = source[taken : taken + _SCRATCH_BYTES - filled]
            scratch[filled : filled + len(part)] = part
            taken += len(part)
            filled += len(part)
            if filled == _SCRATCH_BYTES:
                pieces.append(scratch[start:].data)
                write()
                start = filled = 0
    if filled > start:
        pieces.append(scratch[start:filled].data)
    if pieces:
        write()


def read_direct(fd: int, arrays: Sequence[Array], offset: int) -> int:
    """Fill arrays, one after the other, from any offset; return the bytes that were there.

    Args:
        fd: opened for direct I/O.
        arrays: C-contiguous, of any shape; filled.
        offset: of the first byte.

    Raises:
        OSError: the disk failed; EINVAL: the file takes no direct I/O.
    """
    if offset % ALIGN_BYTES == 0 and all(map(_is_whole_pages, arrays)):
        return os.preadv(fd, [array.data for array in arrays], offset)
    scratch = _scratch.take()
    targets = [array.reshape(-1).view(np.uint8) for array in arrays]
    wanted = sum(map(len, targets))
    done = 0
    while done < wanted:
        start = offset + done
        head = start % ALIGN_BYTES
        span = -(-(head + wanted - done) // ALIGN_BYTES) * ALIGN_BYTES
        size = min(span, _SCRATCH_BYTES)
        there = os.preadv(fd, [scratch[:size].data], start - head) - head
        if there <= 0:
            break
        part = scratch[head : head + min(there, wanted - done)]
        _scatter(part, targets, done)
        done += len(part)
        if there + head < size:  # the file ends
            break
    return done


def _is_whole_pages(array: Array) -> bool:
    address: int = array.__array_interface__["data"][0]
    return array.nbytes > 0 and not (address | array.nbytes) % ALIGN_BYTES


def _scatter(part: Array, targets: Sequence[Array], start: int) -> None:
    """Copy bytes to where they belong in the targets laid end to end."""
    for target in targets:
        if start < len(target) and len(part):
            count = min(len(part), len(target) - start)
            target[start : start + count] = part[:count]
            part = part[count:]
            start = 0
        else:
            start -= len(target)


def in_page_cache(fd: int, byte_count: int, offset: int) -> bool:
    """Whether a range lies whole in the page cache; False where the kernel does not tell (< 6.5).

    A read with RWF_NOWAIT would tell too, but it begins to read what is missing into the cache.
    """
    first, stop = offset // mmap.PAGESIZE, -(-(offset + byte_count) // mmap.PAGESIZE)
    asked = (ctypes.c_uint64 * 2)(offset, byte_count)
    counts = (ctypes.c_uint64 * 5)()
    if _libc.syscall(_SYS_CACHESTAT, fd, asked, counts, 0):
        return False
    return counts[0] >= stop - first
