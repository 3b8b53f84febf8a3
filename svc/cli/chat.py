"""A conversation line by line: from a terminal, or from a file or another program."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable

from svc.cli.failures import EXIT_FAILED, CommandError, failure_of, report
from svc.cli.times import parse_time_s

_AS_OF = re.compile(r"@(\S+)\s+(.*)", re.DOTALL)


def chat(put: Callable[[str, float | None], None], *, at_s: float | None) -> int:
    """Puts each line as a question until there are no more, and goes on after one that failed.

    Args:
        put: asks, and shows the answer.
        at_s: time of the lines that do not begin with one of their own, as `@1:30 what is it ?`.

    Returns:
        the exit status: 1 where a question failed.
    """
    read_line = _typed if sys.stdin.isatty() else _piped
    status = 0
    while True:
        try:
            line = read_line()
            if line is None:
                return status
            if line.strip():
                put(*_question(line.strip(), at_s))
        except BrokenPipeError:  # nobody reads the answers any more
            raise
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            report(failure.reason, str(failure))
            status = EXIT_FAILED


def _question(line: str, at_s: float | None) -> tuple[str, float | None]:
    """Returns a line's question and its time."""
    if not line.startswith("@"):
        return line, at_s
    match = _AS_OF.fullmatch(line)
    try:
        if match is None:
            raise ValueError(
                "a line that begins with @ is a time and a question: @1:30 what is it ?"
            )
        return match[2], parse_time_s(match[1])
    except ValueError as error:
        raise CommandError("USAGE", str(error)) from error


def _typed() -> str | None:
    """Returns what was typed, or None at Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys work from here on
    sys.stderr.flush()
    try:
        if sys.stdout.isatty():
            return input("> ")
        sys.stderr.write("> ")  # standard output is for answers
        sys.stderr.flush()
        return _piped()
    except (EOFError, KeyboardInterrupt) as error:
        sys.stderr.write("\n")  # what comes next does not begin behind the prompt
        if isinstance(error, EOFError):
            return None
        raise
    except UnicodeDecodeError as error:
        raise CommandError("NOT_UTF8", f"the line is not UTF-8: {error}") from error


def _piped() -> str | None:
    """Returns the next line, or None at the end."""
    line = sys.stdin.buffer.readline()
    try:
        return line.decode() if line else None
    except UnicodeDecodeError as error:
        raise CommandError("NOT_UTF8", f"{line!r} holds bytes that are not UTF-8") from error
