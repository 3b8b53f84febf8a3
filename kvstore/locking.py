"""One writer per session: an advisory lock that the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kvstore.errors import SessionLockedError, SessionNotFoundError
from kvstore.paths import LOCK_NAME


def lock_session(folder: Path, session_id: str) -> int:
    """Take the session's lock and return the descriptor that holds it.

    Raises:
        SessionLockedError: someone else holds it.
        SessionNotFoundError: the folder went away.
    """
    try:
        fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError as error:
        raise SessionNotFoundError(session_id) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise SessionLockedError(session_id) from error
    if os.fstat(fd).st_nlink == 0:
        os.close(fd)
        raise SessionNotFoundError(session_id)
    return fd


def release_session(fd: int) -> None:
    """Give the lock back, also when a forked child still holds a copy of the descriptor."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
