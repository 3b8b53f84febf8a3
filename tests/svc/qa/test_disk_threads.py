"""Threads that hang on a disk: they hold a few places, and neither other sessions nor the exit."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstore.paths import RECORD_NAME, session_folder
from svc.engine.model import LoadedModel
from svc.qa.disk_threads import DiskThreads
from svc.rpc.errors import Reason, RequestError
from tests.svc.qa.bench import Bench, until
from tests.svc.qa.service import LiveSession, QaProcess


class Disk:
    """A disk that answers when the test says so."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.read_count = 0

    def read(self) -> str:
        self.read_count += 1
        self.may_answer.wait()
        return "data"


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.may_answer.set()


def left(working: asyncio.Future[str]) -> None:
    """Nothing is to be done about a read that was given up."""


def begin(threads: DiskThreads, session_id: str, work: Callable[[], str]) -> asyncio.Task[str]:
    return asyncio.create_task(threads.run(session_id, work, when_given_up=left))


async def give_up(*tasks: asyncio.Task[str]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_reads_of_a_session_beyond_its_bound_wait_and_are_skipped_when_nobody_wants_them(
    disk: Disk,
) -> None:
    threads = DiskThreads(max_count=9, max_count_per_session=2)
    reads = [begin(threads, "slow", disk.read) for _ in range(5)]
    await until(lambda: disk.read_count == 2)
    assert await threads.run("other", lambda: "at once", when_given_up=left) == "at once"
    await give_up(*reads[2:4])
    disk.may_answer.set()
    assert await asyncio.gather(reads[0], reads[1], reads[4]) == ["data"] * 3
    assert disk.read_count == 3


async def test_a_session_whose_places_are_held_by_given_up_reads_is_refused_at_once(
    disk: Disk,
) -> None:
    threads = DiskThreads(max_count=9, max_count_per_session=2)
    reads = [begin(threads, "hung", disk.read) for _ in range(2)]
    await until(lambda: disk.read_count == 2)
    await give_up(*reads)
    with pytest.raises(RequestError, match="'hung'") as caught:
        await threads.run("hung", disk.read, when_given_up=left)
    assert caught.value.reason is Reason.TOO_MANY_CALLS
    assert caught.value.metadata == {"session_id": "hung", "open": "2", "allowed": "2"}
    disk.may_answer.set()
    await until(lambda: threads._count == 0)
    assert await threads.run("hung", disk.read, when_given_up=left) == "data"


async def test_threads_that_are_still_held_count(disk: Disk) -> None:
    threads = DiskThreads(max_count=3, max_count_per_session=2)
    reads = [begin(threads, name, disk.read) for name in ("a", "a", "b")]
    await until(lambda: disk.read_count == 3)
    await give_up(reads[0], reads[2])
    with pytest.raises(RequestError, match=r"3 threads .* 2 of them") as caught:
        await threads.run("c", disk.read, when_given_up=left)
    assert caught.value.reason is Reason.TOO_MANY_CALLS
    disk.may_answer.set()
    await until(lambda: threads._count == 0)
    assert await threads.run("c", disk.read, when_given_up=left) == "data"
    assert not threads._given_up_counts


async def test_a_read_that_fails_gives_its_place_back() -> None:
    def broken() -> str:
        raise OSError("the disk is gone")

    threads = DiskThreads(max_count=1, max_count_per_session=1)
    for _ in range(3):
        with pytest.raises(OSError, match="gone"):
            await threads.run("bad", broken, when_given_up=left)
        await until(lambda: threads._count == 0)


def hang(store: Path, session_id: str) -> Path:
    """Makes every look at a session wait for ever: its record is a pipe that nobody writes."""
    record = session_folder(store, session_id) / RECORD_NAME
    record.parent.mkdir(parents=True)
    os.mkfifo(record)
    return record


async def test_hung_looks_at_one_session_leave_the_others_alone(
    bench: Bench, session: LiveSession, tmp_path: Path
) -> None:
    record = hang(tmp_path, "hung")
    late = await asyncio.gather(
        *(bench.answer("hung", timeout_s=0.2) for _ in range(12)), return_exceptions=True
    )
    reasons = {error.reason for error in late if isinstance(error, RequestError)}
    assert Reason.QUESTION_TIMED_OUT in reasons
    with pytest.raises(RequestError, match="given up") as caught:
        await bench.answer("hung")
    assert caught.value.reason is Reason.TOO_MANY_CALLS
    assert (await bench.answer("door")).result.text
    os.close(os.open(record, os.O_WRONLY))  # now the threads come to an end
    await until(lambda: bench.threads._count == 0)


def test_hung_looks_keep_the_process_neither_from_answering_nor_from_ending(
    tmp_path: Path, tiny_path: Path, model: LoadedModel, session: LiveSession
) -> None:
    session.finish()
    thread_count = min(32, (os.cpu_count() or 1) + 4)  # those that asyncio would share out
    names = [f"hung-{i}" for i in range(thread_count)]
    for name in names:
        hang(tmp_path, name)
    with QaProcess(data_dir=tmp_path, model=tiny_path) as qa:
        calls = [qa.call(name, timeout_s=1.0) for name in names]
        for call in calls:
            assert call.code().name == "DEADLINE_EXCEEDED"
        assert qa.ask("door").text
        status, _ = qa.stop()
    assert status == 0
