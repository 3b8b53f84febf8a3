"""Questions whose session changes under them: the writer comes back, the deadline passes."""

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from kvstore.limits import BlockLimits
from lookback.v1 import question_pb2 as pb
from lookback.v1 import question_pb2_grpc
from retrieval import index_rows
from retrieval.errors import EpochChangedError, IndexDamagedError
from retrieval.index_file import IndexFile
from retrieval.index_rows import row_check
from retrieval.index_writer import KeyIndexWriter
from svc.engine import ingest_session
from svc.engine.answer_request import AnswerLimits
from svc.engine.index_repair import repair_index, row_fault
from svc.engine.key_rows import key_index_path, open_key_index
from svc.engine.model import LoadedModel
from svc.qa.errors import translate
from svc.qa.runner import Job
from svc.qa.service import QuestionService
from svc.qa.sessions import Lease, Look, OpenSession
from svc.rpc.errors import Reason, RequestError
from svc.rpc.server import Address, RpcServer
from tests.svc.qa.bench import Bench, until
from tests.svc.qa.service import LiveSession, Refusal


async def test_a_question_starts_over_when_the_writer_came_back_under_it(
    bench: Bench, session: LiveSession
) -> None:
    go_on = bench.hold()
    task = await bench.asked("door")
    session.close()  # as in a crash: what is not durable is lost
    session.open()
    durable = session.stream.status.durable_unit_count
    assert 0 < durable < 6
    go_on()
    answered = await task
    assert answered.result.snapshot_unit_count == durable
    assert answered.result.text == (await bench.answer("door")).result.text


async def test_a_question_starts_over_once_and_then_says_why(
    bench: Bench, session: LiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_count = 0
    submitted = bench.runner.submit

    def crash_before(job: Job) -> None:
        nonlocal release_count
        release_count += 1
        session.close()
        session.open()
        submitted(job)

    monkeypatch.setattr(bench.runner, "submit", crash_before)
    with pytest.raises(Exception, match="epoch") as caught:
        await bench.answer("door")
    assert type(caught.value).__name__ in {"EpochChangedError", "SnapshotExpiredError"}
    assert release_count == 2


@pytest.fixture
def look_count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often questions have looked at their session."""
    looked: list[Look] = []
    look = OpenSession.look

    def counted(session: OpenSession) -> Look:
        looked.append(look(session))
        return looked[-1]

    monkeypatch.setattr(OpenSession, "look", counted)
    return lambda: len(looked)


async def test_a_question_waits_while_a_writer_brings_the_index_to_its_epoch(
    bench: Bench,
    session: LiveSession,
    look_count: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session.stream.flush()
    await bench.answer("door")  # the reader of the earlier epoch's index stays open
    session.close()
    recovering, may_recover = threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> KeyIndexWriter:
        recovering.set()
        may_recover.wait()
        return open_key_index(*args, **options)

    monkeypatch.setattr(ingest_session, "open_key_index", slow)
    resuming = threading.Thread(target=session.open)
    resuming.start()
    await until(recovering.is_set)
    looks_before = look_count()
    task = asyncio.create_task(bench.answer("door"))
    await until(lambda: look_count() > looks_before + 6 or task.done())
    assert not task.done()
    may_recover.set()
    resuming.join()
    assert (await task).result.snapshot_unit_count == 6


async def test_a_question_about_a_session_whose_writer_left_the_index_behind_ends(
    bench: Bench, session: LiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.close()

    def full(*args: Any, **options: Any) -> KeyIndexWriter:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(ingest_session, "open_key_index", full)
    with pytest.raises(OSError, match="no room"):
        session.open()
    with pytest.raises(EpochChangedError):
        await bench.answer("door")


async def test_a_time_whose_units_lie_out_of_reach_is_waited_for(
    bench: Bench, session: LiveSession, look_count: Callable[[], int]
) -> None:
    session.stream.received(5.0, 6)
    durable = session.stream.status.durable_unit_count
    assert 0 < durable < 6
    session.hot_tail_path.unlink()
    assert (await bench.answer("door", asked_at_s=0.0)).evidence_until_s == 0.0
    looks_before = look_count()
    task = asyncio.create_task(bench.answer("door", asked_at_s=5.0))
    await until(lambda: look_count() > looks_before + 1 or task.done())
    assert not task.done()
    session.stream.flush()
    answered = await task
    assert (answered.evidence_until_s, answered.result.snapshot_unit_count) == (5.0, 6)


async def test_the_deadline_ends_a_question_that_waits_its_turn(
    bench: Bench, session: LiveSession
) -> None:
    go_on = bench.hold()
    with pytest.raises(RequestError) as caught:
        await bench.answer("door", timeout_s=0.2)
    assert caught.value.reason is Reason.QUESTION_TIMED_OUT
    go_on()
    assert (await bench.answer("door")).result.text


async def test_a_question_without_a_deadline_gets_the_servers(
    bench: Bench, session: LiveSession
) -> None:
    service = QuestionService(max_open_questions=1, default_timeout_s=0.2)
    service.begin(bench.answerer, limits=AnswerLimits(), default_unit_count=4)
    server = RpcServer(
        address=Address(host="127.0.0.1", port=0), service_names=[], translate=translate
    )
    question_pb2_grpc.add_QuestionServiceServicer_to_server(service, server.grpc)
    address = await server.start()
    message = pb.AskRequest(session_id="door", question="What?")
    go_on = bench.hold()
    async with grpc.aio.insecure_channel(str(address)) as channel:
        stub = question_pb2_grpc.QuestionServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Ask(message).read()
        refusal = Refusal.of(caught.value)
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "QUESTION_TIMED_OUT",
        )
        go_on()
        assert (await stub.Ask(message, timeout=60).read()).WhichOneof("response")
    await server.stop(0)


async def test_a_question_is_answered_once_the_index_is_made_whole_under_an_open_reader(
    bench: Bench, session: LiveSession, tmp_path: Path
) -> None:
    session.finish()
    before = await bench.answer("door")
    file = IndexFile.open(key_index_path(tmp_path, "door"), writable=True)
    file.map_chunks(1)[0].rows.view(np.uint32)[0, 2, 1] ^= 1
    file.close()
    bench.sessions.close()  # what is open has checked the row already
    with pytest.raises(IndexDamagedError, match="row 2"):
        await bench.answer("door")
    assert row_fault(tmp_path, "door") is not None
    repair_index(tmp_path, "door", limits=BlockLimits(min_free_bytes=0))
    after = await bench.answer("door")
    assert after.result.text == before.result.text
    np.testing.assert_array_equal(after.result.unit_scores, before.result.unit_scores)


async def test_the_model_thread_checks_no_rows(
    bench: Bench, session: LiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long session's rows come from the disk at their first use; everybody would wait for it."""
    checking: list[threading.Thread] = []

    def noted(row_index: int, row: NDArray[np.float32]) -> int:
        checking.append(threading.current_thread())
        return row_check(row_index, row)

    monkeypatch.setattr(index_rows, "row_check", noted)
    await bench.answer("door")
    session.push([6.0, 7.0])
    await bench.answer("door")
    assert len(checking) == 8
    assert bench.thread not in checking


async def test_a_question_about_checked_rows_does_not_wait_for_a_check_of_more(
    bench: Bench, session: LiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.answer("door")  # six rows are checked
    session.push([6.0])
    checking, may_go_on = threading.Event(), threading.Event()

    def held(row_index: int, row: NDArray[np.float32]) -> int:
        checking.set()
        may_go_on.wait()
        return row_check(row_index, row)

    monkeypatch.setattr(index_rows, "row_check", held)
    newest = asyncio.create_task(bench.answer("door"))
    try:
        await until(checking.is_set)
        earlier = await bench.answer("door", asked_at_s=5.0)
        assert earlier.result.snapshot_unit_count == 6
        assert not newest.done()
    finally:
        may_go_on.set()
    assert (await newest).result.snapshot_unit_count == 7


async def test_a_client_that_goes_away_takes_its_question_from_the_model_thread(
    bench: Bench, session: LiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    submit = bench.runner.submit

    def noted(job: Job) -> None:
        jobs.append(job)
        submit(job)

    monkeypatch.setattr(bench.runner, "submit", noted)
    go_on = bench.hold()
    task = await bench.asked("door")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert jobs[-1].cancelled
    go_on()


async def test_a_session_stays_open_while_it_is_read_and_no_longer(
    bench: Bench, tmp_path: Path, model: LoadedModel, session: LiveSession
) -> None:
    go_on = bench.hold()
    task = await bench.asked("door")
    lease = bench.sessions.lease("door")
    opened = lease.session
    lease.release()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bench.sessions.discard(opened)
    assert opened.lease_count == 1  # the model thread has it still
    opened.look()
    go_on()
    await until(lambda: opened.lease_count == 0)
    assert (await bench.answer("door")).result.text


async def test_a_question_given_up_while_its_session_opens_leaves_no_lease(
    bench: Bench, session: LiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases: list[Lease] = []
    opening, may_open = threading.Event(), threading.Event()
    lease = bench.sessions.lease

    def slow(session_id: str) -> Lease:
        opening.set()
        may_open.wait()
        leases.append(lease(session_id))
        return leases[-1]

    monkeypatch.setattr(bench.sessions, "lease", slow)
    task = asyncio.create_task(bench.answer("door"))
    await until(opening.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    may_open.set()
    await until(lambda: len(leases) == 1 and not leases[0].session.lease_count)


async def test_a_question_that_the_runner_does_not_take_leaves_no_lease(
    bench: Bench, session: LiveSession
) -> None:
    lease = bench.sessions.lease("door")
    bench.runner.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        await bench.answer("door")
    assert lease.session.lease_count == 1
    lease.release()


async def test_the_sessions_used_last_stay_open(
    bench: Bench, tmp_path: Path, model: LoadedModel, session: LiveSession
) -> None:
    others = [LiveSession(tmp_path, model, name) for name in ("a", "b")]
    for other in others:
        other.push([0.0])
    opened = {}
    for name in ("door", "a", "b"):
        lease = bench.sessions.lease(name)
        opened[name] = lease.session
        lease.release()
    assert {name: session.discarded for name, session in opened.items()} == {
        "door": True,
        "a": False,
        "b": False,
    }
    for other in others:
        other.close()
