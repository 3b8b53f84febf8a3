"""How a key index lies in its file: one header page, then chunks of rows, all page-aligned.

    header   magic, version, layer_count, dim, chunk_row_count, checksum of these; epoch; row count
    chunk    rows:  float32 (layer_count, chunk_row_count, dim): one layer's rows lie together
             check: uint64 (chunk_row_count,): XXH3-64 of each row over all layers

The file grows by whole chunks with `posix_fallocate`, so a full disk is an error at growth and
never a SIGBUS at a store into a hole. It is never made shorter, so a mapping stays valid.
Epoch and row count are aligned 8-byte words. They are published by single stores and rely on
stores becoming visible in program order, as x86-64 guarantees.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from retrieval.errors import IndexDamagedError
from retrieval.index_rows import Chunk

Room = Callable[[int], AbstractContextManager[None]]
"""Holds room for growth by so many bytes inside a `with`, or raises."""
PAGE_BYTES = 4096
MAGIC = b"LBKEYIDX"
VERSION = 2
_STATIC = struct.Struct("<8sIIIII")  # magic, version, layer_count, dim, chunk_row_count, checksum
_EPOCH_WORD = 8  # 8-byte words from the page's start
_COUNT_WORD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexLayout:
    """Shape of an index: what a row is, and how many rows a chunk holds."""

    layer_count: int
    dim: int
    chunk_row_count: int

    def __post_init__(self) -> None:
        if self.layer_count < 1 or self.dim < 1 or self.chunk_row_count < 1:
            raise ValueError(f"all of {self} must be >= 1")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all layers, without its checksum."""
        return self.layer_count * self.dim * 4

    @property
    def check_offset_bytes(self) -> int:
        """Where a chunk's checksums begin; a multiple of 8."""
        return -(-self.row_bytes * self.chunk_row_count // 8) * 8

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk: whole pages."""
        return -(-(self.check_offset_bytes + 8 * self.chunk_row_count) // PAGE_BYTES) * PAGE_BYTES

    def chunk_count(self, row_count: int) -> int:
        """Return how many chunks hold `row_count` rows."""
        return -(-row_count // self.chunk_row_count)


class IndexFile:
    """An open index file: its layout, its published words, its mapped chunks.

    Not synchronised: the owner serialises `map_chunks`.
    """

    def __init__(self, path: Path, descriptor: int, *, writable: bool) -> None:
        """Take over `descriptor`, which `close` closes; use `create` or `open`."""
        self.path = path
        self._descriptor = descriptor
        self._writable = writable
        self.min_free_bytes = 0
        """Free bytes of the file system that growing leaves alone."""
        self.room: Room | None = None
        """Who else is asked for room to grow."""
        self.layout = _read_layout(path, descriptor)
        self._header = np.frombuffer(self._map(0, PAGE_BYTES), dtype=np.uint64)

    @classmethod
    def create(cls, path: Path, layout: IndexLayout, *, epoch: int) -> Self:
        """Put an empty index at `path`, atomically in place of whatever was there.

        A reader that has the old file mapped keeps it, unchanged.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
        """
        new_path = path.with_name(path.name + ".new")
        descriptor = os.open(new_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, PAGE_BYTES)
            os.pwrite(descriptor, _pack_static(layout), 0)
            created = cls(path, descriptor, writable=True)
        except BaseException:
            os.close(descriptor)
            new_path.unlink()
            raise
        created.epoch = epoch
        created.sync()
        os.rename(new_path, path)
        return created

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Self:
        """Open the index at `path`.

        Raises:
            IndexDamagedError: it is absent, foreign, of another version, or shorter than it says.
        """
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError as error:
            raise IndexDamagedError(path, "there is no such file") from error
        try:
            opened = cls(path, descriptor, writable=writable)
            opened.check_length()
        except BaseException:
            os.close(descriptor)
            raise
        return opened

    @property
    def epoch(self) -> int:
        """Epoch of the writer that last opened or cut the index."""
        return int(self._header[_EPOCH_WORD])

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._header[_EPOCH_WORD] = epoch

    @property
    def count(self) -> int:
        """Published rows."""
        return int(self._header[_COUNT_WORD])

    @count.setter
    def count(self, count: int) -> None:
        self._header[_COUNT_WORD] = count

    @property
    def allocated_bytes(self) -> int:
        """Bytes that the file takes, the unused part of its last chunk included."""
        return os.fstat(self._descriptor).st_size

    def check_length(self) -> None:
        """Raise IndexDamagedError when the published rows do not lie within the file."""
        wanted = PAGE_BYTES + self.layout.chunk_count(self.count) * self.layout.chunk_bytes
        if wanted > self.allocated_bytes:
            raise IndexDamagedError(
                self.path, f"{self.count} rows need {wanted} bytes, it has {self.allocated_bytes}"
            )

    def map_chunks(self, chunk_count: int) -> list[Chunk]:
        """Map the first `chunk_count` chunks, extending the file to hold them if it may be written.

        One mapping for all: a mapping holds a file descriptor. An earlier one goes when the last
        array on it goes.
        """
        layout = self.layout
        length = chunk_count * layout.chunk_bytes
        if self._writable:
            growth_bytes = PAGE_BYTES + length - self.allocated_bytes
            self._check_room(growth_bytes)
            with self.room(growth_bytes) if self.room and growth_bytes > 0 else nullcontext():
                _allocate(self._descriptor, PAGE_BYTES, length)
        elif self.allocated_bytes < PAGE_BYTES + length:
            raise IndexDamagedError(self.path, f"it has no {chunk_count} chunks")
        data = self._map(PAGE_BYTES, length)
        return [self._view(data, index * layout.chunk_bytes) for index in range(chunk_count)]

    def read_rows(self, row_index: int, row_count: int) -> Chunk:
        """Read rows that lie in one chunk, and their checksums, without a mapping.

        Returns:
            A chunk of just these rows, in memory of its own.

        Raises:
            IndexDamagedError: the file ends before them.
            OSError: the disk cannot read them.
        """
        layout = self.layout
        chunk_index, place = divmod(row_index, layout.chunk_row_count)
        if place + row_count > layout.chunk_row_count:
            raise ValueError(f"rows {row_index} + {row_count} lie in more than one chunk")
        chunk_offset = PAGE_BYTES + chunk_index * layout.chunk_bytes
        values = bytearray()
        for layer in range(layout.layer_count):
            first = layer * layout.chunk_row_count + place
            values += self._read(chunk_offset + 4 * layout.dim * first, 4 * layout.dim * row_count)
        checks = self._read(chunk_offset + layout.check_offset_bytes + 8 * place, 8 * row_count)
        shape = (layout.layer_count, row_count, layout.dim)
        return Chunk(
            np.frombuffer(values, np.float32).reshape(shape), np.frombuffer(checks, np.uint64)
        )

    def sync(self) -> None:
        """Write everything down to the device."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the descriptor; mapped chunks stay valid while they are referred to."""
        # The mapping would keep the file's space, deleted or not, for as long as this object lives.
        self._header = self._header.copy()
        os.close(self._descriptor)

    def _check_room(self, growth_bytes: int) -> None:
        if growth_bytes <= 0 or self.min_free_bytes == 0:
            return
        disk = os.fstatvfs(self._descriptor)
        if disk.f_bavail * disk.f_frsize - growth_bytes < self.min_free_bytes:
            raise OSError(
                errno.ENOSPC,
                f"growing by {growth_bytes} bytes would leave less than {self.min_free_bytes} free",
                os.fspath(self.path),
            )

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) < length:
            raise IndexDamagedError(self.path, f"it ends at {offset + len(data)} bytes")
        return data

    def _view(self, data: mmap.mmap, offset: int) -> Chunk:
        layout = self.layout
        shape = (layout.layer_count, layout.chunk_row_count, layout.dim)
        rows = np.frombuffer(data, np.float32, math.prod(shape), offset).reshape(shape)
        check_offset = offset + layout.check_offset_bytes
        return Chunk(rows, np.frombuffer(data, np.uint64, layout.chunk_row_count, check_offset))

    def _map(self, offset: int, length: int) -> mmap.mmap:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if self._writable else 0)
        return mmap.mmap(
            self._descriptor, length, flags=mmap.MAP_SHARED, prot=protection, offset=offset
        )


def _pack_static(layout: IndexLayout) -> bytes:
    values = (MAGIC, VERSION, layout.layer_count, layout.dim, layout.chunk_row_count)
    unchecked = _STATIC.pack(*values, 0)
    return _STATIC.pack(*values, zlib.crc32(unchecked[:-4]))


def _read_layout(path: Path, descriptor: int) -> IndexLayout:
    data = os.pread(descriptor, PAGE_BYTES, 0)
    if len(data) < PAGE_BYTES:
        raise IndexDamagedError(path, f"it has {len(data)} bytes, its header takes {PAGE_BYTES}")
    magic, version, layer_count, dim, chunk_row_count, check = _STATIC.unpack_from(data)
    if magic != MAGIC:
        raise IndexDamagedError(path, f"it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise IndexDamagedError(path, f"it has version {version}, this program reads {VERSION}")
    if check != zlib.crc32(data[: _STATIC.size - 4]):
        raise IndexDamagedError(path, "its header fails its checksum")
    return IndexLayout(layer_count=layer_count, dim=dim, chunk_row_count=chunk_row_count)


def _allocate(descriptor: int, offset: int, length: int) -> None:
    while True:
        try:
            os.posix_fallocate(descriptor, offset, length)
        except OSError as error:
            if error.errno == errno.EINTR:  # a signal came between; tmpfs gives up at one
                continue
            raise
        return
