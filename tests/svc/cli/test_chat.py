"""`lookback ask --chat`: a question a line, in one conversation."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from svc.rpc.errors import Reason, RequestError
from tests.svc.cli.conftest import Lookback, Service
from tests.svc.client.protocol_server import StoredSession

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def hall(service: Service) -> Service:
    service.server.sessions["hall"] = StoredSession()
    return service


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Makes these bytes standard input."""
    stdin = SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)


def test_each_line_is_asked_with_the_turns_before_it(
    lookback: type[Lookback], hall: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, b"where was it ?\r\n\n  \nand now ?")
    outcome = lookback.run("ask", "hall", "what was it ?", "--chat", "--json", *hall.options)
    assert outcome.status == 0
    assert [(a.question, len(a.history)) for a in hall.server.asked] == [
        ("what was it ?", 0),
        ("where was it ?", 1),
        ("and now ?", 2),
    ]
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert [answer["history_turn_count"] for answer in answers] == [0, 1, 2]
    assert [answer["question"] for answer in answers][-1] == "and now ?"


def test_lines_may_have_their_own_times(
    lookback: type[Lookback], hall: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, b"@2:00 what ?\n@0:30   and then ?\nand later ?\n")
    outcome = lookback.run("ask", "hall", "--chat", "--at", "1:30", *hall.options)
    assert outcome.status == 0
    asked = [(a.question, a.asked_at_s, len(a.history)) for a in hall.server.asked]
    # every answer of this server saw up to 62 s: what is asked as of 30 s goes without
    assert asked == [("what ?", 120.0, 0), ("and then ?", 30.0, 0), ("and later ?", 90.0, 2)]
    assert "note: 1 of 1 earlier turns left out" in outcome.err


def test_a_line_that_fails_is_told_and_leaves_no_turn(
    lookback: type[Lookback], hall: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "talk.json"
    piped(monkeypatch, b"@soon what ?\n@7\n\xff\nlast ?\n")
    hall.server.refuse = None
    outcome = lookback.run("ask", "hall", "--chat", "--history", str(kept), *hall.options)
    assert outcome.status == 1
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == ["USAGE", "USAGE", "NOT_UTF8"]
    assert [a.question for a in hall.server.asked] == ["last ?"]
    assert [turn["question"] for turn in json.loads(kept.read_text())] == ["last ?"]


def test_refusals_of_the_server_do_not_end_the_conversation(
    lookback: type[Lookback], hall: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    hall.server.refuse = RequestError(Reason.SESSION_EMPTY, "nothing yet")
    piped(monkeypatch, b"what ?\nwhat now ?\n")
    outcome = lookback.run("ask", "hall", "--chat", *hall.options)
    assert outcome.status == 1
    assert outcome.err.count("error: SESSION_EMPTY: ") == 2


def test_without_a_question_and_without_chat_there_is_nothing_to_ask(
    lookback: type[Lookback], hall: Service
) -> None:
    outcome = lookback.run("ask", "hall", *hall.options)
    assert outcome.status == 2
    assert "--chat" in outcome.err


class Terminal:
    """The command in a process of its own, on a terminal."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "svc.cli.main", *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True
        )
        os.close(slave)
        self.shown = ""

    def until(self, text: str) -> None:
        deadline_s = time.monotonic() + 60
        while text not in self.shown:
            assert time.monotonic() < deadline_s, self.shown
            self.shown += os.read(self._master, 4096).decode()

    def until_it_waits(self) -> None:
        """After the prompt: a signal before it waits for a key is noticed at the next key only.

        That is how input() reads with readline; a person is not quick enough to meet it.
        """
        deadline_s = time.monotonic() + 60
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline_s, self.shown
            time.sleep(0.001)

    def type(self, data: bytes) -> None:
        self.shown = ""
        os.write(self._master, data)

    def end(self) -> int:
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            os.close(self._master)


@pytest.mark.parametrize("leave", ["end of file", "interrupt"])
def test_on_a_terminal_it_prompts_answers_and_leaves_cleanly(hall: Service, leave: str) -> None:
    terminal = Terminal("ask", "hall", "--chat", *hall.options)
    terminal.until("> ")
    terminal.type(b"what was it ?\n")
    terminal.until("seen up to")
    terminal.until("> ")
    if leave == "end of file":
        terminal.type(b"\x04")
        expected = 0
    else:
        terminal.shown = ""
        terminal.until_it_waits()
        os.kill(terminal.process.pid, signal.SIGINT)
        expected = 130
    assert terminal.end() == expected
    assert "Traceback" not in terminal.shown
    assert [a.question for a in hall.server.asked] == ["what was it ?"]
