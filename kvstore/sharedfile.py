"""Files that a process has in shared memory for a store's root, at most one of a kind.

As with hot tails (`kvstore/hotfile.py`) the owner holds a lock on the file for as long as it lives.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Literal

from kvstore.diskio import DiskIO
from kvstore.hotfile import DEFAULT_SHM_DIR, create_locked, remove_if_ownerless, root_hash

logger = logging.getLogger(__name__)

SharedKind = Literal["ram", "use"]
"""ram: the arena of the RAM tier. use: what a process that answers has read. So the names end."""

_NAME = re.compile(r"lookback-(\d+)-([0-9a-f]{16})-(\d+)\.([a-z]+)")


def shared_folder(shm_dir: Path | None) -> Path:
    """Where they lie: never on a disk, which has what an arena holds already."""
    return DEFAULT_SHM_DIR if shm_dir is None else shm_dir


def create_shared_file(
    root: Path, kind: SharedKind, *, size: int, shm_dir: Path | None, io: DiskIO
) -> tuple[int, Path]:
    """Create this process's file with `size` bytes of memory: its locked descriptor and path.

    Raises:
        OSError: the folder or the root does not exist, or has no room.
    """
    name = f"lookback-{os.getuid()}-{root_hash(root)}-{os.getpid()}.{kind}"
    path = shared_folder(shm_dir) / name
    return create_locked(io, path, size), path


def shared_files(root: Path, kind: SharedKind, *, shm_dir: Path | None = None) -> list[Path]:
    """The files of all processes of this root, those of dead ones included."""
    folder = shared_folder(shm_dir)
    try:
        names = os.listdir(folder)
        wanted = (root_hash(root), kind)
    except FileNotFoundError:
        return []
    matches = [match for match in map(_NAME.fullmatch, names) if match is not None]
    return sorted(folder / match.string for match in matches if match.group(2, 4) == wanted)


def clean_stale_files(root: Path, kind: SharedKind, *, shm_dir: Path | None = None) -> int:
    """Remove files whose owner is gone, and return how many. Readers let go of them soon."""
    removed = 0
    for path in shared_files(root, kind, shm_dir=shm_dir):
        if remove_if_ownerless(path):
            removed += 1
            logger.info("stale shared file removed", extra={"path": str(path)})
    return removed
