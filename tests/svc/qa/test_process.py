"""The QA process as its parent sees it: exit statuses, readiness, draining, death."""

import asyncio
import logging
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lookback.v1 import question_pb2 as pb
from lookback.v1 import question_pb2_grpc
from svc.child import STOP_MARGIN_S
from svc.config import Settings
from svc.engine.answer import AnswerEngine
from svc.qa import model_thread
from svc.qa.__main__ import main
from svc.qa.process import STOP_AFTER_DRAIN_S, serve
from svc.qa.runner import Runner
from svc.qa.service import SERVICE_NAME
from tests.svc.qa.service import LiveSession, QaProcess, Refusal, finish, sampled

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs what the process runs, here; returns exit status and the last line on stderr."""
    root = logging.getLogger()
    before = root.handlers, root.level

    def run_main(**settings: object) -> tuple[int, str]:
        for name, value in settings.items():
            monkeypatch.setenv(f"LOOKBACK_{name.upper()}", str(value))
        status = main()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return status, captured.err.splitlines()[-1]

    yield run_main
    root.handlers, root.level = before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"qa_port": "many"}, "qa_port"),
        ({"retreived_units": 8}, "LOOKBACK_RETREIVED_UNITS"),
        ({"model": "/nowhere/at-all", "qa_port": 0}, "/nowhere/at-all"),
    ],
)
def test_a_wrong_configuration_ends_with_2_and_one_line(
    run: Callable[..., tuple[int, str]], settings: dict[str, object], said: str
) -> None:
    status, line = run(**settings)
    assert status == 2
    assert line.startswith("lookback qa cannot start: ")
    assert said in line


def test_a_port_in_use_ends_with_2_and_one_line(run: Callable[..., tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, line = run(qa_port=port)
    assert status == 2
    assert line.startswith(f"lookback qa cannot start: cannot listen on 127.0.0.1:{port}")


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


async def test_while_the_model_loads_calls_are_refused_and_a_stop_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(model_thread, "_load", lambda settings: gate.wait())
    serving = asyncio.create_task(serve(Settings(data_dir=tmp_path, qa_port=free_port)))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{free_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE_NAME):
            status = await health.Check(
                health_pb2.HealthCheckRequest(service=name), wait_for_ready=True
            )
            assert status.status == NOT_SERVING
        call = question_pb2_grpc.QuestionServiceStub(channel).Ask(
            pb.AskRequest(session_id="door", question="What?")
        )
        assert await call.code() == grpc.StatusCode.UNAVAILABLE
        assert "loading" in await call.details()
        signal.raise_signal(signal.SIGTERM)
        assert await serving
    gate.set()


async def test_a_model_thread_that_breaks_ends_the_process_as_a_crash(
    tmp_path: Path,
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(runner: Runner, engine: AnswerEngine) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(Runner, "run", broken)
    assert not await serve(Settings(data_dir=tmp_path, qa_port=0, model=str(tiny_path)))
    assert "the model thread broke" in caplog.text


def test_a_ready_process_is_serving(qa: QaProcess) -> None:
    health = health_pb2_grpc.HealthStub(qa.channel)
    for name in ("", SERVICE_NAME):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING


def test_stopping_finishes_what_runs_and_refuses_what_comes(
    tmp_path: Path, tiny_path: Path, session: LiveSession
) -> None:
    with QaProcess(data_dir=tmp_path, model=tiny_path, drain_s=60) as qa:
        whole = qa.ask("door", decoding=sampled(600)).text
        call = qa.call("door", decoding=sampled(600))
        first = next(iter(call)).delta.text
        qa.process.send_signal(signal.SIGTERM)
        refusal = draining_refusal(qa)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert refusal.retry_after_s
        health = health_pb2_grpc.HealthStub(qa.channel)
        for name in ("", SERVICE_NAME):
            request = health_pb2.HealthCheckRequest(service=name)
            assert health.Check(request).status == NOT_SERVING
        rest = list(call)
        assert rest[-1].answer.text == whole
        assert whole.startswith(first)
        _, log = qa.process.communicate()
        assert qa.process.returncode == 0
        assert "Traceback" not in log


def test_the_longest_stop_ends_before_the_parent_kills() -> None:
    assert STOP_AFTER_DRAIN_S + 1.0 < STOP_MARGIN_S  # a second for what has no limit of its own


def test_stopping_cuts_off_what_does_not_end_in_time(
    tmp_path: Path, tiny_path: Path, session: LiveSession
) -> None:
    with QaProcess(data_dir=tmp_path, model=tiny_path, drain_s=0.2) as qa:
        call = qa.call("door", decoding=sampled(4096))
        next(iter(call))
        status, log = qa.stop()
        assert status == 0
        assert "Traceback" not in log
        assert "questions cut off by the stop" in log
        with pytest.raises(grpc.RpcError) as caught:
            finish(call)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_killed_process_answers_the_same_when_it_is_back(
    tmp_path: Path, tiny_path: Path, session: LiveSession
) -> None:
    with QaProcess(data_dir=tmp_path, model=tiny_path) as qa:
        before = qa.ask("door")
        call = qa.call("door", decoding=sampled(4096))
        next(iter(call))
        qa.process.kill()
        with pytest.raises(grpc.RpcError) as caught:
            finish(call)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        port = qa.address.rpartition(":")[2]
    with QaProcess(data_dir=tmp_path, model=tiny_path, qa_port=port) as qa:
        assert qa.address.endswith(f":{port}")
        after = qa.ask("door")
        qa.process.send_signal(signal.SIGINT)  # idle: nothing to wait for
        _, log = qa.process.communicate()
        assert qa.process.returncode == 0
        assert "Traceback" not in log
    assert (after.text, after.snapshot_unit_count) == (before.text, 6)
    assert list(after.evidence) == list(before.evidence)


def test_a_process_with_copies_says_which_it_cannot_read_and_answers_from_the_other(
    tmp_path: Path, tiny_path: Path, session: LiveSession
) -> None:
    session.finish()
    with QaProcess(data_dir=tmp_path, model=tiny_path) as qa:
        whole = qa.ask("door")
    copy, absent = tmp_path / "copy", tmp_path / "absent"
    shutil.copytree(tmp_path / "sessions", copy / "sessions")
    for path in (tmp_path / "sessions" / "door").glob("seg-*.kvs"):
        path.unlink()
    with QaProcess(data_dir=tmp_path, model=tiny_path, store_copies=f"{absent}:{copy}") as qa:
        answer = qa.ask("door")
        status, log = qa.stop()
    assert status == 0
    assert not answer.evidence_lost
    assert (answer.text, list(answer.evidence)) == (whole.text, list(whole.evidence))
    assert f"{absent} is no copy of a store that can be read" in log
    assert f"{copy} is no copy" not in log
    assert "a segment is missing, or a header or unit table in it is damaged" in log


def draining_refusal(qa: QaProcess) -> Refusal:
    """Asks until the process has taken note of the signal."""
    while True:
        try:
            qa.ask("door", decoding=sampled(1))
        except grpc.RpcError as error:
            return Refusal.of(error)
