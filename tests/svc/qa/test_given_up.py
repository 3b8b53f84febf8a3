"""Questions that are given up while a thread works for them: nothing is left behind."""

import asyncio
import gc
import itertools
import logging
import operator
import os
import threading
import time
from pathlib import Path

import pytest

from kvstore.deletion import delete_session
from kvstore.errors import BlockCorruptError
from kvstore.reader import SessionReader
from svc.engine.model import LoadedModel
from svc.qa import process
from svc.qa.deadline import Deadline
from svc.qa.sessions import OpenSession, SessionCache
from svc.rpc.errors import Reason, RequestError
from tests.svc.qa.bench import Bench, holding, until
from tests.svc.qa.service import LiveSession


def open_files(folder: Path) -> list[str]:
    """What this process has open or mapped below a folder."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return [name for name in [*map(os.readlink, links), *mapped] if name.startswith(f"{folder}/")]


@pytest.mark.parametrize("name", ["look", "index_of"])
async def test_a_session_stays_open_for_the_thread_of_a_question_that_was_given_up(
    bench: Bench,
    session: LiveSession,
    tmp_path: Path,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session.finish()
    with holding(OpenSession, name) as held:
        task = asyncio.create_task(bench.answer("door"))
        await until(held.entered.is_set)
        lease = bench.sessions.lease("door")
        opened = lease.session
        lease.release()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        bench.sessions.close()
        assert opened.lease_count == 1  # the thread has it still
        held.may_go_on.set()
        await until(lambda: opened.lease_count == 0 and held.ended.is_set())
    assert open_files(tmp_path) == []
    assert (await bench.answer("door")).result.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_what_fails_in_the_thread_of_a_question_that_was_given_up_is_nobodys_error(
    bench: Bench,
    session: LiveSession,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session.finish()
    with holding(OpenSession, "look") as held:
        task = asyncio.create_task(bench.answer("door"))
        await until(held.entered.is_set)
        lease = bench.sessions.lease("door")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        delete_session(tmp_path, "door")
        held.may_go_on.set()
        await until(lambda: lease.session.lease_count == 1 and held.ended.is_set())
    lease.release()
    del task
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(SessionCache, "lease"), (OpenSession, "look"), (OpenSession, "index_of")],
)
async def test_a_disk_that_does_not_answer_cannot_keep_a_question_beyond_its_deadline(
    bench: Bench, session: LiveSession, owner: type, name: str
) -> None:
    with holding(owner, name) as held:
        for timeout_s in itertools.accumulate(itertools.repeat(2.0), operator.mul, initial=0.2):
            late = asyncio.create_task(bench.answer("door", timeout_s=timeout_s))
            await until(lambda late=late: held.entered.is_set() or late.done())
            if held.entered.is_set():  # else this machine was too slow to come so far
                break
        with pytest.raises(RequestError) as caught:
            await late
        assert caught.value.reason is Reason.QUESTION_TIMED_OUT
        held.may_go_on.set()
        await until(held.ended.is_set)
    answered = await bench.answer("door")
    assert answered.result.text
    await until(lambda: all(not s.lease_count for s in bench.sessions._open.values()))


async def test_a_question_that_is_given_up_as_its_event_comes_is_given_up() -> None:
    event: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(Deadline(time.perf_counter() + 60).keep(event))
    await asyncio.sleep(0)
    event.set_result(None)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


def test_a_session_stays_open_while_a_sweep_looks_at_it(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    LiveSession(tmp_path, model, "door").close()
    sessions = SessionCache(tmp_path, capacity=1)
    lease = sessions.lease("door")
    unused = lease.session
    lease.release()
    closed = threading.Event()
    close = unused.close

    def noted() -> None:
        close()
        closed.set()

    monkeypatch.setattr(unused, "close", noted)
    with holding(SessionReader, "snapshot") as held:
        sweeping = threading.Thread(target=sessions.sweep)
        sweeping.start()
        held.entered.wait()
        sessions.close()
        assert not closed.is_set()
    sweeping.join()
    assert closed.is_set()


def test_a_sweep_goes_on_after_a_session_that_is_damaged(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = SessionCache(tmp_path, capacity=2)
    opened = []
    for name in ("bad", "gone"):
        LiveSession(tmp_path, model, name).close()
        lease = sessions.lease(name)
        opened.append(lease.session)
        lease.release()

    def damaged() -> None:
        raise BlockCorruptError("bad", 0, "flipped")

    monkeypatch.setattr(opened[0].reader, "snapshot", damaged)
    delete_session(tmp_path, "gone")
    sessions.sweep()
    assert [session.discarded for session in opened] == [True, True]
    sessions.lease("bad").release()  # opened anew
    sessions.close()


def test_a_sweep_that_breaks_leaves_no_lease(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = SessionCache(tmp_path, capacity=2)
    opened = []
    for name in ("broken", "other"):
        LiveSession(tmp_path, model, name).close()
        lease = sessions.lease(name)
        opened.append(lease.session)
        lease.release()

    def broken() -> None:
        raise ValueError("nobody thought of it")

    monkeypatch.setattr(opened[0].reader, "snapshot", broken)
    with pytest.raises(ValueError, match="nobody thought"):
        sessions.sweep()
    assert [session.lease_count for session in opened] == [0, 0]
    sessions.close()


async def test_sweeps_go_on_after_one_that_broke(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = SessionCache(tmp_path, capacity=1)
    swept: list[None] = []

    def broken() -> None:
        swept.append(None)
        raise ValueError("nobody thought of it")

    monkeypatch.setattr(sessions, "sweep", broken)
    monkeypatch.setattr(process, "_SWEEP_EVERY_S", 0.001)
    sweeping = asyncio.create_task(process._sweep(sessions))
    await until(lambda: len(swept) > 2 or sweeping.done())
    assert not sweeping.done()
    sweeping.cancel()
    assert "nobody thought" in caplog.text
