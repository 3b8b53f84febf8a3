"""For how long sessions have been seen to lie idle, over restarts, by a clock that nobody sets.

The machine's wall clock may be set wrong and jump by years. What passes here is counted by
CLOCK_BOOTTIME while a process watches the store, and written down: time in which none did is not
counted, so a session is taken to be younger than it is, never older.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import xxhash

from svc.boot_time import boot_time_s

logger = logging.getLogger(__name__)

FILE_NAME = "idle-times"
_MAX_STEP_S = 3600.0
"""More than this between two looks is not taken for time in which the store was watched."""


class IdleTimes:
    """One process of a store counts, for as long as it holds the file's lock.

    One thread a time looks; any may save and close.
    """

    def __init__(self, fd: int, clock_s: Callable[[], float]) -> None:
        """Internal: use `open`."""
        self._fd = fd
        self._open = True
        self._file = threading.Lock()
        self._clock_s = clock_s
        self._looked_s = clock_s()
        self._idle: dict[str, tuple[str, float]] = _read(fd)
        """Per session: what it was like when it was seen first, and seconds seen since."""

    @classmethod
    def open(cls, root: Path) -> IdleTimes | None:
        """Begin to count, going on from what was written down; None: another process counts."""
        fd = os.open(root / FILE_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return cls(fd, boot_time_s)

    def look(self, marks: dict[str, str]) -> dict[str, float]:
        """Count the time since the last look for sessions that are still as they were then.

        Args:
            marks: per idle session, what changes when it does; the others are forgotten.

        Returns:
            Seconds that each session has been seen as it is.
        """
        now_s = self._clock_s()
        step_s = now_s - self._looked_s
        step_s = step_s if 0 <= step_s <= _MAX_STEP_S else 0.0
        self._looked_s = now_s
        known = self._idle
        self._idle = {
            session_id: (mark, known[session_id][1] + step_s)
            if known.get(session_id, ("", 0.0))[0] == mark
            else (mark, 0.0)
            for session_id, mark in marks.items()
        }
        return {session_id: idle_s for session_id, (_, idle_s) in self._idle.items()}

    def save(self) -> None:
        """Write down what was counted. A torn write is found, and the count then begins anew.

        Once it is closed, nothing: the descriptor may be another file's.
        """
        content = json.dumps(self._idle)
        data = f"{xxhash.xxh3_64_hexdigest(content.encode())}\n{content}\n".encode()
        with self._file:
            if self._open:
                os.pwrite(self._fd, data, 0)
                os.ftruncate(self._fd, len(data))
                os.fsync(self._fd)

    def close(self) -> None:
        """Let another process count."""
        with self._file:
            if self._open:
                self._open = False
                os.close(self._fd)


def _read(fd: int) -> dict[str, tuple[str, float]]:
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    if not data:
        return {}
    try:
        checksum, content = data.decode().rstrip("\n").split("\n")
        if xxhash.xxh3_64_hexdigest(content.encode()) != checksum:
            raise ValueError("it does not match its checksum")
        return {
            name: (str(mark), float(idle)) for name, (mark, idle) in json.loads(content).items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        logger.warning("idle times are counted anew", extra={"reason": str(error)})
        return {}
