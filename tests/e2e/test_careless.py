"""What people do by mistake on the command line: one line that says what is wrong, no traceback."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.asking import fresh_name
from tests.e2e.running import SMALL, Outcome, Service, lookback, start_lookback
from tests.svc.engine.tiny import build_tiny_checkpoint
from tests.svc.video.media import NASA, video


def assert_one_line(outcome: Outcome, reason: str, *says: str) -> None:
    """The command failed, and said why in one line, the last."""
    assert outcome.status == 1, outcome.err
    assert "Traceback" not in outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert errors == [outcome.last_line], outcome.err
    assert outcome.last_line.startswith(f"error: {reason}: ")
    for text in says:
        assert text in outcome.last_line


@pytest.fixture
def mistaken(tmp_path: Path) -> Callable[[str], str]:
    """Makes what is pushed by mistake; returns its path."""

    def make(kind: str) -> str:
        path = tmp_path / "given.mp4"
        if kind == "text":
            path.write_text("Dear diary,\n" * 100)
        elif kind == "folder":
            path.mkdir()
        elif kind == "empty":
            path.touch()
        return str(path)

    return make


@pytest.mark.parametrize("kind", ["text", "folder", "empty", "nothing"])
def test_pushing_what_is_no_video_makes_no_session(
    shared_service: Service, mistaken: Callable[[str], str], kind: str
) -> None:
    session, path = fresh_name("mistake"), mistaken(kind)
    outcome = shared_service.lookback("push", path, "--session", session)
    assert_one_line(outcome, "SOURCE_OPEN", path)
    outcome = shared_service.lookback("sessions", "show", session)
    assert_one_line(outcome, "SESSION_NOT_FOUND", session)


def test_standard_input_that_is_no_video(shared_service: Service) -> None:
    outcome = shared_service.lookback("push", "-", "--session", fresh_name("pipe"), stdin=b"hello")
    assert_one_line(outcome, "MEDIA_CORRUPT", "none of mp4")


def test_a_name_with_capitals_is_told_the_rule(shared_service: Service) -> None:
    for command in (("push", video(NASA), "--session", "Kitchen"), ("ask", "Kitchen", "What?")):
        assert_one_line(shared_service.lookback(*command), "INVALID_SESSION_ID", "a-z", "'Kitchen'")


def test_asking_before_anything_is_pushed(shared_service: Service) -> None:
    outcome = shared_service.lookback("ask", "not-yet", "What is there?")
    assert_one_line(outcome, "SESSION_NOT_FOUND", "'not-yet'")


def test_a_push_interrupted_begun_twice_and_gone_on_with(shared_service: Service) -> None:
    """One person's afternoon: a second push beside the first, Ctrl-C, again, and once too often."""
    session, path = fresh_name("afternoon"), video(NASA)
    where = ("--ingest-address", shared_service.ingest_address)
    command = ("push", path, "--session", session, "--fps", "4")
    first = start_lookback(*where, *command, "--speed", "0.1")
    assert first.stderr is not None
    assert first.stderr.readline() == f"pushing to {session}\n"

    second = shared_service.lookback(*command, "--give-up-after", "0")
    assert_one_line(second, "SESSION_IN_USE", f"'{session}'")
    finish = shared_service.lookback("sessions", "finish", session)
    assert_one_line(finish, "SESSION_BUSY", f"'{session}'", "end that push")

    first.send_signal(signal.SIGINT)
    out, err = first.communicate()
    assert first.returncode == 130
    assert "Traceback" not in err
    assert "left live" in out
    assert err.splitlines()[-1].startswith("interrupted; the session stays live. To go on: ")

    third = shared_service.lookback(*command)
    assert third.status == 0, third.err
    assert f"{session}: finished, 52 units" in third.out
    again = shared_service.lookback(*command)
    assert_one_line(again, "SESSION_FINISHED", f"'{session}'")


def test_a_push_that_failed_is_finished_by_hand(shared_service: Service) -> None:
    session = fresh_name("pipe")
    assert shared_service.lookback("push", "-", "--session", session, stdin=b"hello").status == 1
    finished = shared_service.lookback("sessions", "finish", session)
    assert (finished.status, finished.out) == (0, f"finished {session}: nothing, 0 units\n")
    again = shared_service.lookback("sessions", "finish", session)
    assert_one_line(again, "SESSION_FINISHED", f"'{session}'")
    assert_one_line(shared_service.lookback("ask", session, "What?"), "SESSION_EMPTY")


def serve(tmp_path: Path, **changes: object) -> Outcome:
    """Runs `lookback serve` to an end that is its own."""
    values = {"data": tmp_path / "data", **changes}
    options = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    ports = ("--ingest-port", "0", "--qa-port", "0")
    return lookback("serve", *ports, *options, **{**SMALL, "shm_dir": tmp_path})


def assert_told_why_it_does_not_serve(outcome: Outcome, *says: str) -> None:
    assert outcome.status == 2, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("error: CANNOT_START: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for text in says:
        assert text in outcome.err


def test_serving_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    outcome = serve(tmp_path, model=tmp_path / "holiday")
    assert_told_why_it_does_not_serve(outcome, str(tmp_path / "holiday"))


def test_serving_the_memory_of_another_model(shared_service: Service, tmp_path: Path) -> None:
    """Not while it is served; of what a copy holds, sessions are refused one by one."""
    session, path = fresh_name("mine"), video(NASA)
    assert shared_service.lookback("push", path, "--session", session, "--no-finish").status == 0
    other = build_tiny_checkpoint(
        tmp_path / "other", rope={"rope_type": "default", "rope_theta": 5e5}
    )
    beside = serve(shared_service.folder, model=other)
    assert beside.status == 2
    assert beside.last_line.startswith("error: FOLDER_IN_USE: --data ")
    assert f"pid {shared_service.pid('ingest')} at {shared_service.ingest_address}" in beside.err
    shutil.copytree(shared_service.data, tmp_path / "data")
    with Service(folder=tmp_path, model=other) as service:
        asked = service.lookback("ask", session, "What is there?")
        assert_one_line(asked, "IDENTITY_MISMATCH", "model", session)
        pushed = service.lookback("push", path, "--session", session)
        assert_one_line(pushed, "IDENTITY_MISMATCH", "model")
        assert service.stop() == 0
        assert "Traceback" not in service.log
    assert shared_service.lookback("ask", session, "What is there?").status == 0
    assert shared_service.lookback("push", path, "--session", session).status == 0


def test_serving_with_a_setting_that_is_misspelt(tmp_path: Path) -> None:
    outcome = lookback("serve", "--data", str(tmp_path), sampel_fps=2)
    assert outcome.status == 2
    assert outcome.err.splitlines() == [outcome.last_line]
    assert outcome.last_line.startswith("error: CONFIG: ")
    assert "LOOKBACK_SAMPEL_FPS" in outcome.last_line
