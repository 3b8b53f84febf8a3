"""Clearing what crashes left in a store, beside a service that may be running."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from kvstore.deletion import finish_deletion
from kvstore.errors import SessionLockedError
from kvstore.hotfile import clean_stale_hot_tails
from kvstore.incoming import sweep_incoming
from kvstore.paths import LOCK_NAME, TOMBSTONE_NAME, sessions_folder, trash_folder

_AT_WORK_S = 60.0
"""A folder in the trash that changed within this time may be another process's work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """How much of what crashes left was removed."""

    deletion_count: int
    """Deletions (and creations) of sessions that were interrupted."""
    import_count: int
    hot_tail_count: int
    """Hot tails in shared memory whose writer is gone."""


def clear_leftovers(root: Path, *, shm_dir: Path | None = None) -> Cleared:
    """Finish interrupted deletions, remove interrupted imports and hot tails without an owner.

    Unlike `sweep_tombstones` it leaves alone what another process may be at work on.

    Args:
        shm_dir: a folder of hot tails to search beside the default ones.
    """
    return Cleared(
        deletion_count=_finish_deletions(root) + _empty_trash(root),
        import_count=sweep_incoming(root),
        hot_tail_count=clean_stale_hot_tails(root, shm_dir=shm_dir),
    )


def _finish_deletions(root: Path) -> int:
    finished = 0
    for tombstone in sorted(sessions_folder(root).glob(f"*/{TOMBSTONE_NAME}")):
        try:
            finish_deletion(root, tombstone.parent.name)
        except SessionLockedError:
            continue  # under way elsewhere
        finished += 1
    return finished


def _empty_trash(root: Path) -> int:
    emptied = 0
    for folder in sorted(trash_folder(root).glob("*")):
        if not _is_at_work(folder):
            shutil.rmtree(folder, ignore_errors=True)
            emptied += 1
    return emptied


def _is_at_work(folder: Path) -> bool:
    """Whether another process may be making or removing this folder of the trash."""
    try:
        if time.time() - folder.stat().st_mtime < _AT_WORK_S:
            return True
        fd = os.open(folder / LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:
        return not folder.exists()
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
