"""Where a hot tail's file lies, what it is called, and how those of dead writers are removed.

The file is plain: opened, allocated and mapped by us. (`multiprocessing.shared_memory` of
Python <= 3.12 unlinks a segment when a process that merely attached to it ends.) The owner holds a
lock on the file, so a file that can be locked has no owner, whatever its pid or pid namespace.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import xxhash

from kvstore.diskio import DiskIO
from kvstore.errors import StoreFullError

logger = logging.getLogger(__name__)

DEFAULT_SHM_DIR = Path("/dev/shm")
_NAME = re.compile(r"lookback-(\d+)-([0-9a-f]{16})-([a-z0-9-]+)-(\d+)-(\d+)\.hot")


def root_hash(root: Path) -> str:
    """Return what names a store's root in the names of its files in shared memory."""
    # The folder's identity, not its path: two containers may call different disks /data.
    status = root.stat()
    return f"{xxhash.xxh3_64_intdigest(f'{status.st_dev}:{status.st_ino}'.encode()):016x}"


def fallback_folder(root: Path) -> Path:
    """Where hot tails lie when shared memory has no room."""
    return root / "hot"


def create_locked(io: DiskIO, path: Path, size: int) -> int:
    """Create the file, take its lock, give it memory; the file is gone again on failure."""
    while True:
        fd = io.create(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A cleaner may have locked and removed the file before we had the lock.
            if os.fstat(fd).st_nlink == 0:
                os.close(fd)
                continue
            io.fallocate(fd, 0, size)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return fd


def create_hot_file(
    root: Path,
    session_id: str,
    *,
    epoch: int,
    size: int,
    shm_dir: Path | None,
    min_free_bytes: int,
    io: DiskIO,
) -> tuple[int, Path]:
    """Create and allocate the file of a new hot tail; return its locked descriptor and path.

    Without `shm_dir` it lies in /dev/shm, or, when that has no room (containers often get 64 MB),
    in a folder under the root.

    Raises:
        StoreFullError: neither place (or not the one asked for) has room.
    """
    name = f"lookback-{os.getuid()}-{root_hash(root)}-{session_id}-{epoch}-{os.getpid()}.hot"
    fallback = fallback_folder(root)
    folders = [shm_dir] if shm_dir is not None else [DEFAULT_SHM_DIR, fallback]
    free_bytes = reserve_bytes = 0
    for folder in folders:
        reserve_bytes = min_free_bytes if folder == fallback else 0
        if folder == fallback:
            folder.mkdir(exist_ok=True)
        try:
            free_bytes = io.free_bytes(folder)
            if free_bytes - size >= reserve_bytes:
                return create_locked(io, folder / name, size), folder / name
        except FileNotFoundError:
            free_bytes = 0
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        if folder != folders[-1]:
            logger.warning(
                "shared memory has no room for the hot tail, using the store's folder",
                extra={"shm_dir": str(folder), "needed_bytes": size, "free_bytes": free_bytes},
            )
    raise StoreFullError(folders[-1], size, free_bytes, reserve_bytes)


def _hot_files(root: Path, shm_dir: Path | None) -> Iterator[tuple[Path, str]]:
    """Every hot tail of this root: (path, session id)."""
    wanted = root_hash(root)
    folders = {DEFAULT_SHM_DIR, fallback_folder(root)}
    if shm_dir is not None:
        folders.add(shm_dir)
    for folder in sorted(folders):
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        for name in names:
            match = _NAME.fullmatch(name)
            if match is not None and match.group(2) == wanted:
                yield folder / name, match.group(3)


def remove_if_ownerless(path: Path) -> bool:
    """Remove a file whose lock nobody holds; False when it has an owner, or is gone."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink == 0:
            return False
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def clean_stale_hot_tails(
    root: Path, *, shm_dir: Path | None = None, session_id: str | None = None
) -> int:
    """Remove hot tails whose writer is gone, and return how many.

    Units in them that were visible but not durable end here. Readers that map one keep it.

    Args:
        shm_dir: a folder to search beside the default ones.
        session_id: only this session's.
    """
    if not root.is_dir():
        return 0
    removed = 0
    for path, owner in _hot_files(root, shm_dir):
        if session_id in (None, owner) and remove_if_ownerless(path):
            removed += 1
            logger.info("stale hot tail removed", extra={"path": str(path)})
    return removed
