"""What a folder takes of its disk: allocated blocks, not lengths of files."""

from __future__ import annotations

import os
from pathlib import Path

_BLOCK_BYTES = 512  # what st_blocks counts, whatever the file system's own blocks are


def used_bytes(folder: Path) -> int:
    """Bytes of disk that everything below a folder takes, reserved and unwritten ones included.

    Files that were deleted and are still open somewhere are not counted. What vanishes while
    it is being counted is not counted either; a folder that is not there takes nothing.
    """
    total = 0
    folders = [os.fspath(folder)]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
                except FileNotFoundError:
                    continue
    return total


def path_bytes(path: Path) -> int:
    """Bytes of disk that a file takes; 0 when it is not there."""
    try:
        return path.stat().st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0
