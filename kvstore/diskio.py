"""The system calls that change a session's folder, as a seam for fault injection."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from kvstore.freememory import free_memory_bytes

Buffer = bytes | bytearray | memoryview

# Linux refuses more buffers per call (IOV_MAX), and cuts a call at 2 GiB less one page.
_BUFFERS_PER_CALL = 1024
_BYTES_PER_CALL = 1 << 30
_PIECE_BYTES = 1 << 20
"""What the disk is told to begin with while the next piece is copied into the page cache."""
_PAGE_BYTES = 4096

_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


class DiskIO:
    """The real disk. A test hands the writer a subclass that loses, tears or fails."""

    def create(self, path: Path) -> int:
        """Create a file that must not exist and return its descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write the buffers at `offset` and return the bytes written."""
        return os.pwritev(fd, buffers, offset)

    def set_direct(self, fd: int, *, direct: bool) -> None:
        """Have the file's writes go past the page cache, or not; OSError(EINVAL): it cannot."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)

    def begin_write_out(self, fd: int, offset: int, length: int) -> None:
        """Have the disk begin to write whole pages of a range; nothing is durable by it.

        Only starts and does not wait, so it takes no error away from the sync that follows.
        """
        arguments = map(ctypes.c_int64, (offset, length))
        if _libc.sync_file_range(fd, *arguments, _SYNC_FILE_RANGE_WRITE):
            code = ctypes.get_errno()
            if code not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):  # not known here
                raise OSError(code, os.strerror(code))

    def fdatasync(self, fd: int) -> None:
        """Wait until the file's data, and what is needed to read it, is on the disk."""
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Wait until the file's data and metadata is on the disk."""
        os.fsync(fd)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve disk for a range, which reads as zeros; OSError(ENOSPC) when there is none."""
        os.posix_fallocate(fd, offset, length)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(fd, size)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def rename(self, path: Path, onto: Path) -> None:
        """Give a file another name in its folder, in place of what has that name."""
        os.rename(path, onto)

    def fsync_folder(self, folder: Path) -> None:
        """Wait until the folder's entries are on the disk."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def file_system(self, folder: Path) -> str:
        """The kind of file system that a folder lies on, such as ext4."""
        return file_system_of(folder)

    def free_bytes(self, folder: Path) -> int:
        """Bytes of the folder's file system that this user may still take."""
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    def free_memory_bytes(self) -> int:
        """Memory that may still be taken; see `kvstore.freememory`."""
        return free_memory_bytes()


def make_folders(io: DiskIO, folder: Path) -> None:
    """Create a folder and its missing parents, durably."""
    if folder.is_dir():
        return
    make_folders(io, folder.parent)
    folder.mkdir(exist_ok=True)
    io.fsync_folder(folder.parent)


def file_system_of(folder: Path) -> str:
    """The kind of file system that a folder lies on, such as ext4; empty when it cannot be told.

    By path, not by device number: a btrfs folder has another one than its mount.
    """
    path = folder.resolve()
    best, found = -1, ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        point = Path(mount.split()[4].encode().decode("unicode_escape"))  # a space is \\040
        # Of mounts one over the other, the last is the one that is seen.
        if len(point.parts) >= best and path.is_relative_to(point):
            best, found = len(point.parts), kind.split()[0]
    return found


def lies_in_memory(folder: Path) -> bool:
    """Whether the folder's file system is gone after a power loss, whatever was synced."""
    return file_system_of(folder) in ("tmpfs", "ramfs")


class ShortWriteError(OSError):
    """The system wrote fewer bytes than it was given."""


def write_fully(io: DiskIO, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write all buffers, one after the other, from `offset`; one call unless limits forbid it.

    Raises:
        OSError: the system refused, or (ShortWriteError) wrote less. What lies in the range
            is unknown then, and the caller must not go on.
    """
    start = 0
    while start < len(buffers):
        stop, byte_count = start, 0
        while stop < len(buffers) and stop - start < _BUFFERS_PER_CALL:
            length = memoryview(buffers[stop]).nbytes
            if stop > start and byte_count + length > _BYTES_PER_CALL:
                break
            byte_count += length
            stop += 1
        written = io.pwritev(fd, buffers[start:stop], offset)
        if written != byte_count:
            raise ShortWriteError(f"{written} of {byte_count} bytes were written at {offset}")
        offset += byte_count
        start = stop


def write_early(io: DiskIO, fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write as `write_fully` does, and have the disk begin while the rest is copied.

    The sync that follows has less to wait for.

    Raises:
        OSError: as from `write_fully`.
    """
    piece: list[Buffer] = []
    piece_bytes, begun = 0, offset
    for buffer in buffers:
        piece.append(buffer)
        piece_bytes += memoryview(buffer).nbytes
        if piece_bytes >= _PIECE_BYTES:
            write_fully(io, fd, piece, offset)
            offset += piece_bytes
            whole_pages = offset // _PAGE_BYTES * _PAGE_BYTES
            io.begin_write_out(fd, begun, whole_pages - begun)
            begun = whole_pages
            piece, piece_bytes = [], 0
    if piece:
        write_fully(io, fd, piece, offset)
