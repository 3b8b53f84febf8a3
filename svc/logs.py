"""How the processes log: one line per event on stderr, for people on a terminal, else as JSON.

Messages are constant texts; what varies travels as fields (`extra=`, or `log_fields` for
everything that is logged inside a call).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

_bound: ContextVar[Mapping[str, object]] = ContextVar("log_fields")
_STANDARD = frozenset(
    [*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName"]
)


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Adds `fields` to every line logged in this context, and in tasks started from it."""
    before = _bound.get({})
    _bound.set({**before, **fields})
    try:
        yield
    finally:
        # Not by token: a generator that is dropped is closed in a context of its own.
        _bound.set(before)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Returns what a record carries beside its message: bound fields, then its own."""
    own = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return {**_bound.get({}), **own}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, process, logger, message, then the fields."""

    def __init__(self, process: str) -> None:
        """`process` is the name of the process, shown in every line."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Formats one record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in fields_of(record).items() if key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """Time of day, level, process, message, then the fields as key=value."""

    def __init__(self, process: str) -> None:
        """`process` is the name of the process, shown in every line."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Formats one record."""
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        pairs = "".join(f" {key}={value}" for key, value in fields_of(record).items())
        line = f"{clock} {record.levelname:<7} {self._process} {record.getMessage()}{pairs}"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


def configure_logs(process: str, level: str, stream: TextIO | None = None) -> None:
    """Sends all logs of this process to `stream` (stderr), marked with the name of the process.

    Args:
        process: name of the process, shown in every line: "ingest", "qa", ...
        level: name of the least severe level that is logged.
        stream: where the lines go.
    """
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    handler.setFormatter(HumanFormatter(process) if out.isatty() else JsonFormatter(process))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for noisy in ("httpx", "httpcore", "urllib3", "asyncio", "filelock", "faiss"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


@contextmanager
def only_errors_of(name: str) -> Iterator[None]:
    """Leaves out what the logger `name` has to say short of an error, while within."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
