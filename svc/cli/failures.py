"""How a command fails: one line on standard error, and an exit status."""

from __future__ import annotations

import re
import sys

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


def reason_of(error: Exception) -> str:
    """Returns the stable name of an error that is told apart by its class: NO_VIDEO_STREAM."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
