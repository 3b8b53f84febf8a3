"""Where an arena's file lies, what it is called, and how those of dead owners are removed.

As with hot tails (`kvstore/hotfile.py`) the owner holds a lock on the file for as long as it lives.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from kvstore.diskio import DiskIO
from kvstore.hotfile import DEFAULT_SHM_DIR, create_locked, remove_if_ownerless, root_hash

logger = logging.getLogger(__name__)

_NAME = re.compile(r"lookback-(\d+)-([0-9a-f]{16})-(\d+)\.ram")


def arena_folder(shm_dir: Path | None) -> Path:
    """Where arenas lie: never on a disk, which has what they hold already."""
    return DEFAULT_SHM_DIR if shm_dir is None else shm_dir


def create_arena_file(
    root: Path, *, size: int, shm_dir: Path | None, io: DiskIO
) -> tuple[int, Path]:
    """Create a file and give it `size` bytes of memory; return its locked descriptor and path.

    Raises:
        OSError: the folder does not exist, or has no room.
    """
    name = f"lookback-{os.getuid()}-{root_hash(root)}-{os.getpid()}.ram"
    path = arena_folder(shm_dir) / name
    return create_locked(io, path, size), path


def arena_paths(root: Path, *, shm_dir: Path | None = None) -> list[Path]:
    """The files of all arenas of this root, those of dead owners included."""
    folder = arena_folder(shm_dir)
    try:
        names = os.listdir(folder)
        wanted = root_hash(root)
    except FileNotFoundError:
        return []
    matches = [match for match in map(_NAME.fullmatch, names) if match is not None]
    return sorted(folder / match.string for match in matches if match.group(2) == wanted)


def clean_stale_arenas(root: Path, *, shm_dir: Path | None = None) -> int:
    """Remove arenas whose owner is gone, and return how many. Readers let go of them soon."""
    removed = 0
    for path in arena_paths(root, shm_dir=shm_dir):
        if remove_if_ownerless(path):
            removed += 1
            logger.info("stale arena removed", extra={"path": str(path)})
    return removed
