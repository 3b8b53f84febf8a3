"""A question that is given up while it reads from disk leaves no read behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.readpool import Reading, ReadPool
from svc.engine.model import LoadedModel
from svc.qa.answerer import Answerer
from svc.rpc.errors import Reason, RequestError
from tests.kvstore.test_readpool import Gate
from tests.svc.qa.service import LiveSession
from tests.svc.qa.test_answerer import Bench, until

SESSION = "door"


@pytest.fixture
def bench(tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Answers from a session on disk, with two threads that look up after every unit."""
    session = LiveSession(tmp_path, model, SESSION)
    session.push([float(second) for second in range(6)])
    session.finish()
    monkeypatch.setattr("kvstore.readsteps._UNITS_PER_BATCH", 1)
    bench = Bench(tmp_path, model)
    pool = ReadPool(2, least_part_bytes=1)
    bench.answerer = Answerer(
        model=model,
        sessions=bench.sessions,
        runner=bench.runner,
        threads=bench.threads,
        pool=pool,
    )
    yield bench
    bench.runner.stop()
    bench.thread.join(20.0)
    pool.close()
    bench.sessions.close()


async def cancel_while_it_reads(bench: Bench, gate: Gate) -> int:
    """Returns how many reads had begun when the question was given up."""
    task = asyncio.create_task(bench.answer(SESSION))
    await until(lambda: gate.begun_count == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    begun_count = gate.begun_count
    gate.open.set()
    await until(lambda: not bench.runner._active)
    return begun_count


async def test_a_cancelled_question_leaves_no_read_running(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    begun_count = await cancel_while_it_reads(bench, gate)
    assert (gate.begun_count, gate.ended_count) == (begun_count, begun_count)
    assert all(session.lease_count == 0 for session in bench.sessions._open.values())
    assert (await bench.answer(SESSION)).result.finish_reason == "length"


async def test_the_test_sees_reads_that_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reading, "check", lambda reading: None)
    gate = Gate(monkeypatch)
    begun_count = await cancel_while_it_reads(bench, gate)
    assert gate.begun_count > begun_count


async def test_a_question_whose_deadline_passes_while_it_reads_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with pytest.raises(RequestError) as refusal:
        await bench.answer(SESSION, timeout_s=0.3)
    assert refusal.value.reason is Reason.QUESTION_TIMED_OUT
    begun_count = gate.begun_count
    gate.open.set()
    await until(lambda: not bench.runner._active)
    assert gate.begun_count == gate.ended_count == begun_count
