"""How a command fails: one line on standard error, and an exit status."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svc.client import LookbackError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot do what it was asked; `reason` is a stable name."""

    def __init__(self, reason: str, message: str, *, exit_status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_status = exit_status


def report(reason: str, message: str) -> None:
    """Writes the one line that says what went wrong."""
    sys.stderr.write(f"error: {reason}: {' '.join(message.split())}\n")


def failure_of(error: Exception) -> CommandError | None:
    """Returns how a command says an error of what it used; None: it is a fault of ours.

    Only what has been imported can have been raised, so nothing is imported to find out.
    """
    if isinstance(error, CommandError):
        return error
    if "svc.client" in sys.modules:
        from svc.client import LookbackError

        if isinstance(error, LookbackError):
            return CommandError(error.reason, _message(error))
    if "svc.video" in sys.modules:
        from svc.video.errors import VideoError

        if isinstance(error, VideoError):
            return CommandError(reason_of(error), str(error))
    if "kvstore.errors" in sys.modules:
        from kvstore.errors import KVStoreError

        if isinstance(error, KVStoreError):
            return CommandError(reason_of(error), str(error))
    if "kvstore.archive" in sys.modules:
        from kvstore.archive import BadArchiveError

        if isinstance(error, BadArchiveError):
            return CommandError(reason_of(error), str(error))
    if "svc.engine.errors" in sys.modules:
        from svc.engine.errors import EngineError

        if isinstance(error, EngineError):
            return CommandError(reason_of(error), str(error))
    if "svc.config" in sys.modules:
        from svc.config import ConfigError

        if isinstance(error, ConfigError):
            return CommandError(reason_of(error), str(error), exit_status=EXIT_USAGE)
    if isinstance(error, UnicodeEncodeError) and _came_as_bytes(error):
        return CommandError(
            "NOT_UTF8", f"{error.object!r} holds bytes that are not UTF-8", exit_status=EXIT_USAGE
        )
    if isinstance(error, OSError):
        return CommandError(reason_of(error), os_error_text(error))
    return None


def os_error_text(error: OSError) -> str:
    """Returns which file it is about and why, in words: no number of the system's."""
    if error.strerror is None:
        return str(error)
    why = error.strerror[:1].lower() + error.strerror[1:]
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' and '.join(map(repr, files))}: {why}" if files else why


def _came_as_bytes(error: UnicodeEncodeError) -> bool:
    """Whether it is about an argument of the command line: Python escapes its bytes so."""
    return any(error.object in argument for argument in sys.argv[1:])


def _message(error: LookbackError) -> str:
    if error.reason == "UNREACHABLE":
        start = (
            "start one with: lookback serve --data DIR, and wait until it says that it serves: "
            "for its first seconds it does not listen yet"
        )
        return f"{error.message}; {start}"
    if error.reason == "SOURCE_MISMATCH":
        return error.message.replace("join_source adds", "--join adds")
    if error.retry_after_s is not None:
        return f"{error.message} (try again in {error.retry_after_s:g} s)"
    return error.message


def reason_of(error: Exception) -> str:
    """Returns the stable name of an error that is told apart by its class: NO_VIDEO_STREAM."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).upper()
