"""Where no lock keeps an old owner out (shared storage), what it writes too late is void."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvstore import opening
from kvstore.blocklog import BlockLog
from kvstore.chain import ChainEnd
from kvstore.diskio import Buffer, DiskIO
from kvstore.errors import KVStoreError, WriterFencedError
from kvstore.follow import LogFollower
from kvstore.paths import LOCK_NAME, segment_path, session_folder
from kvstore.reader import SessionReader
from kvstore.scan import LogScan, _Walk
from kvstore.verify import verify_store
from tests.kvstore.samples import SESSION, append, kill, open_writer, unit_is

FORK = multiprocessing.get_context("fork")
_OLD, _NEW = 0, 1  # salts: what the old owner writes differs from what the new one does


class _StopsItself(DiskIO):
    """Stands still, as SIGSTOP makes it, right before the commit it was told of."""

    armed = False

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.armed:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().pwritev(fd, buffers, offset)


def _old_owner(root: Path, held: Any) -> None:
    """Two units durable, a third written over the pause. Ends with 7 when that was fenced."""
    disk = _StopsItself()
    writer = open_writer(root, io=disk, may_commit=lambda: bool(held.value))
    append(writer, 2, salt=_OLD)
    writer.flush()
    append(writer, 1, salt=_OLD)
    disk.armed = True
    try:
        writer.flush()
    except WriterFencedError:
        os._exit(7)
    os._exit(0)


class _Paused:
    """The old owner, standing still in the middle of a commit."""

    def __init__(self, root: Path) -> None:
        self._held = FORK.Value("b", 1)
        process = FORK.Process(target=_old_owner, args=(root, self._held))
        process.start()
        assert process.pid is not None
        self._pid = process.pid
        _, status = os.waitpid(self._pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def resume(self) -> None:
        """Lets it write what it had begun; its lease has run out meanwhile."""
        self._held.value = 0
        os.kill(self._pid, signal.SIGCONT)
        _, status = os.waitpid(self._pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7, "it acknowledged what it wrote too late"


@pytest.fixture(autouse=True)
def _no_lock_between_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another machine that has mounted the same disk: nobody's lock is in the way."""

    def lock_session(folder: Path, session_id: str) -> int:
        return os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)

    monkeypatch.setattr(opening, "lock_session", lock_session)


def _check(root: Path, new_count: int) -> None:
    """A reader that comes now finds two old units, then new ones, and nothing is damaged."""
    assert verify_store(root).damage == ()
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert snapshot.unit_count == 2 + new_count
    assert all(unit_is(reader, snapshot, index, salt=_OLD) for index in range(2))
    assert all(unit_is(reader, snapshot, index, salt=_NEW) for index in range(2, 2 + new_count))
    reader.close()


def _late_after_the_new_owners_commit(root: Path) -> None:
    old = _Paused(root)
    new = open_writer(root)
    append(new, 3, salt=_NEW)
    new.flush()
    old.resume()
    append(new, 3, salt=_NEW)
    new.flush()
    _check(root, 6)
    new.close()
    _check(root, 6)
    third = open_writer(root)
    assert third.durable_unit_count == 8
    append(third, 1, salt=_NEW)
    _check(root, 7)
    third.close()


def _late_before_the_new_owners_commit(root: Path) -> None:
    old = _Paused(root)
    new = open_writer(root)
    watching = SessionReader.open(root, SESSION)
    old.resume()
    assert watching.snapshot().unit_count == 2
    append(new, 3, salt=_NEW)
    new.flush()
    _check(root, 3)
    snapshot = watching.snapshot()
    assert all(unit_is(watching, snapshot, index, salt=_NEW) for index in range(2, 5))
    watching.close()
    new.close()
    third = open_writer(root)
    assert third.durable_unit_count == 5
    third.close()
    _check(root, 3)


def _late_and_the_new_owner_crashed_before_its_commit(root: Path) -> None:
    old = _Paused(root)
    new = open_writer(root)
    old.resume()
    kill(new)
    third = open_writer(root)
    assert third.durable_unit_count == 2
    append(third, 2, salt=_NEW)
    third.flush()
    _check(root, 2)
    third.close()


_STORIES = {
    "after": _late_after_the_new_owners_commit,
    "before": _late_before_the_new_owners_commit,
    "crashed": _late_and_the_new_owner_crashed_before_its_commit,
}


@pytest.mark.parametrize("story", _STORIES)
def test_what_a_paused_owner_writes_after_the_takeover_is_void(root: Path, story: str) -> None:
    _STORIES[story](root)


def _go_on_in_the_old_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    original = BlockLog.__init__

    def init(log: BlockLog, folder: Path, session_id: str, **arguments: Any) -> None:
        original(log, folder, session_id, **arguments)
        scan: LogScan = arguments["scan"]
        if scan.blocks:
            log._fd = os.open(segment_path(folder, scan.kept_segment), os.O_RDWR)
            log._offset = scan.kept_offset
            log._allocated = os.fstat(log._fd).st_size

    monkeypatch.setattr(BlockLog, "__init__", init)


def _no_epochs_in_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Walk, "least_epoch", lambda walk, sequence: 0)


def _no_epochs_in_following(monkeypatch: pytest.MonkeyPatch) -> None:
    def unbounded(follower: LogFollower, end: ChainEnd, number: int) -> ChainEnd:
        return end

    monkeypatch.setattr(LogFollower, "_bounded", unbounded)


def _no_epochs_in_checking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.checking.SessionCheck._is_late", lambda *arguments: False)


def _no_word_of_the_control_page(monkeypatch: pytest.MonkeyPatch) -> None:
    real = opening.scan_log

    def scan_log(*arguments: Any, **options: Any) -> LogScan:
        return real(*arguments, **{**options, "begun_epoch": 0})

    monkeypatch.setattr(opening, "scan_log", scan_log)


@pytest.mark.parametrize(
    ("mutate", "story"),
    [
        (_go_on_in_the_old_segment, "after"),
        (_no_epochs_in_recovery, "before"),
        (_no_epochs_in_following, "before"),
        (_no_epochs_in_checking, "after"),
        (_no_word_of_the_control_page, "crashed"),
    ],
)
def test_a_store_without_one_of_the_rules_takes_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, mutate: Any, story: str
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, KVStoreError)):
        _STORIES[story](root)


def test_the_control_page_may_be_lost_without_losing_what_was_acknowledged(root: Path) -> None:
    first = open_writer(root)
    append(first, 4)
    first.flush()
    first.close()
    (session_folder(root, SESSION) / "CTL").unlink()
    second = open_writer(root)
    assert second.durable_unit_count == 4
    second.close()
