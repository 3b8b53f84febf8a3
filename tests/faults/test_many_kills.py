"""More than a thousand kills, of writers, recoveries, deletions and readers."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kvstore.deletion import delete_session, sweep_tombstones
from kvstore.limits import BlockLimits
from kvstore.paths import session_folder
from kvstore.reader import SessionReader
from tests.faults.content import THINNING
from tests.faults.killed import (
    DROPPING,
    ONE_BLOCK_SEGMENTS,
    Child,
    KilledSession,
    die_at_call,
)
from tests.faults.ledger import Ledger, Line
from tests.kvstore.samples import (
    FAST_FOLDER,
    LIMITS,
    SESSION,
    append,
    kill,
    open_writer,
    read_unit,
    unit_is,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_KILLS_PER_SESSION = 25


def _kill_writers(
    folder: Path | None, limits: BlockLimits, count: int, line: Line, *, at_calls: bool
) -> None:
    for first in range(0, count, _KILLS_PER_SESSION):
        rng = random.Random(first)
        calls = 600 if limits is THINNING else 80  # a recovery opens every segment
        with tempfile.TemporaryDirectory(dir=folder) as root:
            session = KilledSession(Path(root), limits, line)
            session.kill_while_it_writes(1, rng)
            for life in range(2, _KILLS_PER_SESSION + 1):
                if at_calls and life % 3:
                    session.kill_at_a_call(life, rng.randrange(1, calls))
                else:
                    session.kill_while_it_writes(life, rng)


@pytest.mark.parametrize(
    ("what", "limits", "on_disk"),
    [
        ("kill -9 while writing, in memory", LIMITS, False),
        ("kill -9 while writing, on the disk", LIMITS, True),
        ("kill -9 while every commit makes a segment", ONE_BLOCK_SEGMENTS, False),
        ("kill -9 while dropping the oldest", DROPPING, False),
        ("kill -9 while thinning, in memory", THINNING, False),
        ("kill -9 while thinning, on the disk", THINNING, True),
    ],
)
def test_a_writer_killed_at_any_moment_loses_nothing_acknowledged(
    ledger: Ledger, tmp_path: Path, what: str, limits: BlockLimits, on_disk: bool
) -> None:
    with ledger.line(what) as line:
        folder = tmp_path if on_disk else FAST_FOLDER
        _kill_writers(folder, limits, 150, line, at_calls=False)


@pytest.mark.parametrize("limits", [LIMITS, ONE_BLOCK_SEGMENTS, DROPPING, THINNING])
def test_a_writer_killed_at_a_call_of_its_recovery_or_commit_loses_nothing(
    ledger: Ledger, limits: BlockLimits
) -> None:
    names = {id(LIMITS): "plain", id(DROPPING): "dropping", id(THINNING): "thinning"}
    name = names.get(id(limits), "rotating")
    with ledger.line(f"kill -9 at a call: recovery, rotation ({name})") as line:
        _kill_writers(FAST_FOLDER, limits, 150, line, at_calls=True)


def _delete(told: Connection, root: Path, dies_at: int) -> None:
    die_at_call(dies_at)
    delete_session(root, SESSION)
    told.send(1)


def _closed_session(root: Path) -> int:
    writer = open_writer(root)
    append(writer, 20)
    writer.close()
    return writer.durable_unit_count


def test_a_deletion_killed_at_any_call_leaves_the_session_whole_or_gone(
    ledger: Ledger, root: Path
) -> None:
    with ledger.line("kill -9 at every call of a deletion") as line:
        met = set()
        for dies_at in range(1, 200):
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            unit_count = _closed_session(root)
            child = Child(_delete, root, dies_at)
            acknowledged = bool(child.end(by_kill=False))
            sweep_tombstones(root)
            there = session_folder(root, SESSION).is_dir()
            assert not (acknowledged and there), "a deletion that was acknowledged is undone"
            assert not list((root / "trash").glob("*"))
            if there:
                reader = SessionReader.open(root, SESSION)
                snapshot = reader.snapshot()
                assert snapshot.unit_count == unit_count
                assert all(unit_is(reader, snapshot, index) for index in range(unit_count))
                reader.close()
                line.acknowledged_count += unit_count
                line.checked_count += unit_count
            else:
                assert not list((root / "shm").iterdir())
            if not child.was_killed:
                break
            met.add(there)
            line.fault_count += 1
        else:
            pytest.fail("the deletion takes more calls than were tried")
        assert met == {True, False}


def _read_on_and_on(told: Connection, root: Path) -> None:
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    told.send(snapshot.unit_count)
    while True:
        for index in range(snapshot.unit_count):
            read_unit(reader, snapshot, index, index % 2)
            told.send(index)


def _marks(root: Path) -> list[tuple[str, int, int]]:
    """Every file under the root with its size and the time when it was last changed."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def test_a_reader_killed_in_the_middle_of_a_copy_leaves_no_trace(
    ledger: Ledger, root: Path
) -> None:
    """Of hot units and of those on the disk; the writer goes on as if nobody had been there."""
    with ledger.line("kill -9 of a reader that copies") as line:
        writer = open_writer(root, limits=replace(LIMITS, segment_bytes=32 * 1024))
        rng = random.Random(5)
        append(writer, 60)
        for _ in range(200):
            before = _marks(root)
            child = Child(_read_on_and_on, root)
            assert child.tells() == writer.visible_unit_count
            for _ in range(rng.randrange(150)):
                child.tells()
            child.end()
            assert _marks(root) == before
            line.fault_count += 1
            if line.fault_count % 10 == 0:
                append(writer, 1)
        writer.flush()
        reader = SessionReader.open(root, SESSION)
        snapshot = reader.snapshot()
        assert snapshot.unit_count == 80
        for index in range(80):
            assert unit_is(reader, snapshot, index)
            line.checked_count += 1
        line.acknowledged_count += writer.durable_unit_count
        reader.close()
        kill(writer)
        assert open_writer(root).durable_unit_count == 80


class _ForgetfulSession(KilledSession):
    """A store that acknowledges five units before it has them."""

    def kill_while_it_writes(self, life: int, rng: random.Random) -> None:
        super().kill_while_it_writes(life, rng)
        self.acknowledged += 5


def test_a_store_that_acknowledges_too_early_is_caught(root: Path) -> None:
    session = _ForgetfulSession(root, LIMITS, Line("mutant"))

    def live() -> None:
        for life in range(1, 20):
            session.kill_while_it_writes(life, random.Random(life))

    with pytest.raises(AssertionError, match="lost"):
        live()
