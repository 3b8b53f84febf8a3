"""Deleting a session so that a crash at any point leaves it whole or gone, never half.

The tombstone is the decision: once it is durable the session does not exist any more, and every
start finishes what is left. Readers that have files open finish their reads.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from pathlib import Path

from kvstore.control import ControlPage, WriterState
from kvstore.diskio import DiskIO, make_folders
from kvstore.errors import SessionLockedError, SessionNotFoundError
from kvstore.hotfile import clean_stale_hot_tails
from kvstore.locking import lock_session, release_session
from kvstore.paths import (
    TOMBSTONE_NAME,
    session_folder,
    session_hash,
    sessions_folder,
    trash_folder,
)

logger = logging.getLogger(__name__)


def delete_session(root: Path, session_id: str) -> None:
    """Delete a session with everything in its folder.

    Raises:
        SessionNotFoundError: there is no such session.
        SessionLockedError: a writer is at work; close it first.
    """
    io = DiskIO()
    folder = session_folder(root, session_id)
    if not folder.is_dir():
        raise SessionNotFoundError(session_id)
    lock_fd = lock_session(folder, session_id)
    try:
        if not (folder / TOMBSTONE_NAME).exists():
            fd = os.open(folder / TOMBSTONE_NAME, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                io.fsync(fd)
            finally:
                os.close(fd)
            io.fsync_folder(folder)
        _remove(root, session_id, io)
    finally:
        release_session(lock_fd)
    logger.info("session deleted", extra={"session": session_id})


def _remove(root: Path, session_id: str, io: DiskIO) -> None:
    """Take a session with a tombstone off the disk; the caller holds its lock."""
    folder = session_folder(root, session_id)
    control = ControlPage.open(folder, session_hash(session_id), writable=True)
    if control is not None:
        control.set_state(WriterState.DELETED)
        control.close()
    make_folders(io, trash_folder(root))
    discarded = trash_folder(root) / f"{session_id}-{uuid.uuid4().hex}"
    os.rename(folder, discarded)
    io.fsync_folder(sessions_folder(root))
    io.fsync_folder(trash_folder(root))
    clean_stale_hot_tails(root, session_id=session_id)
    shutil.rmtree(discarded)


def finish_deletion(root: Path, session_id: str) -> None:
    """Finish a deletion that a crash interrupted.

    Raises:
        SessionLockedError: it is under way elsewhere.
    """
    folder = session_folder(root, session_id)
    try:
        lock_fd = lock_session(folder, session_id)
    except SessionNotFoundError:
        return
    try:
        _remove(root, session_id, DiskIO())
    finally:
        release_session(lock_fd)


def sweep_tombstones(root: Path) -> int:
    """Finish interrupted deletions and creations, and return how many there were.

    To be run by one process at its start, before it creates or deletes sessions.
    """
    swept = 0
    sessions = sessions_folder(root)
    if sessions.is_dir():
        for folder in sorted(sessions.iterdir()):
            if not (folder / TOMBSTONE_NAME).exists():
                continue
            try:
                finish_deletion(root, folder.name)
                swept += 1
            except SessionLockedError:
                logger.info("deletion under way elsewhere", extra={"session": folder.name})
    trash = trash_folder(root)
    if trash.is_dir():
        for folder in sorted(trash.iterdir()):
            shutil.rmtree(folder)
            swept += 1
    if swept:
        logger.info("interrupted deletions finished", extra={"swept_count": swept})
    return swept
