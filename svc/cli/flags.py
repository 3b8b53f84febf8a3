"""Says what was wrong by the name people typed: `--at` where the protocol says `asked_at_s`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from svc.cli.failures import CommandError, failure_of

_FIELD_REASONS = (
    *("INVALID_REQUEST", "QUESTION_INVALID", "SESSION_EXISTS"),
    *("STORE_FULL", "CONFIG", "FOLDER_IN_USE", "PORT_IN_USE"),
)


@contextlib.contextmanager
def naming(flags: Mapping[str, str]) -> Iterator[None]:
    """Turns refusals of fields into refusals of the options that set them.

    Args:
        flags: option by name of a field. Others' words are left alone: a name without an
            underscore is replaced only where the message begins with it.

    Raises:
        CommandError: in place of an error that names one of the fields.
    """
    try:
        yield
    except Exception as error:
        failure = failure_of(error)
        if failure is None or failure.reason not in _FIELD_REASONS:
            raise
        message = named(str(failure), flags)
        if message == str(failure):
            raise
        raise CommandError(failure.reason, message, exit_status=failure.exit_status) from error


def named(message: str, flags: Mapping[str, str]) -> str:
    """Returns the message with options in place of fields; see `naming`."""
    for field in sorted(flags, key=len, reverse=True):
        name = rf"(?:\b\w+\.)?\b{field}\b(?:\[\d+\])?"
        where = rf"(?<!['\"\w.-]){name}(?!['\"])" if "_" in field else rf"\A{name}"
        message = re.sub(where, flags[field], message)
    return message
