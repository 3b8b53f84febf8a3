"""Logging: one line per event, fields from the call, JSON unless a person reads it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from svc.logs import configure_logs, log_fields


@pytest.fixture(autouse=True)
def _root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_one_json_object_a_line_with_bound_and_own_fields() -> None:
    out = io.StringIO()
    configure_logs("ingest", "INFO", out)
    with log_fields(session="cam"):
        logging.getLogger("svc.x").info("session opened", extra={"resume_at": 3})
    logging.getLogger("svc.x").debug("unseen")
    (line,) = out.getvalue().splitlines()
    record = json.loads(line)
    assert record["message"] == "session opened"
    assert (record["process"], record["session"], record["resume_at"]) == ("ingest", "cam", 3)


def test_fields_end_with_their_block() -> None:
    out = io.StringIO()
    configure_logs("ingest", "INFO", out)
    with log_fields(session="cam"):
        pass
    logging.getLogger("svc.x").info("later")
    assert "session" not in json.loads(out.getvalue())


def test_an_exception_stays_on_the_json_line() -> None:
    out = io.StringIO()
    configure_logs("qa", "INFO", out)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("svc.x").exception("call failed")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: boom" in json.loads(line)["exception"]


def test_a_terminal_gets_lines_for_people() -> None:
    out = _Terminal()
    configure_logs("qa", "INFO", out)
    logging.getLogger("svc.x").warning("disk is slow", extra={"wait_s": 2})
    assert out.getvalue().rstrip().endswith("WARNING qa disk is slow wait_s=2")
