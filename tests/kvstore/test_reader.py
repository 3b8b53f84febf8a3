"""What a reader holds, what it costs, and what it does when the session goes away."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.deletion import delete_session
from kvstore.errors import SessionNotFoundError
from kvstore.filepool import FilePool
from kvstore.reader import SessionReader
from kvstore.segmentfiles import OpenFile
from kvstore.verify import verify_store
from tests.kvstore.samples import SESSION, append, open_writer, read_units, unit_is


def built(root: Path, unit_count: int) -> None:
    writer = open_writer(root)
    append(writer, unit_count)
    writer.flush()
    writer.close()


def test_a_session_that_is_not_there_is_not_found(root: Path) -> None:
    with pytest.raises(SessionNotFoundError):
        SessionReader.open(root, SESSION)


def test_a_session_without_units_has_an_empty_snapshot(root: Path) -> None:
    (root / "sessions" / SESSION).mkdir(parents=True)
    reader = SessionReader.open(root, SESSION)
    assert (reader.snapshot().unit_count, reader.geometry) == (0, None)
    writer = open_writer(root)
    append(writer, 2)
    assert reader.snapshot().unit_count == 2
    assert reader.geometry == writer.geometry
    writer.close()


def test_a_snapshot_without_news_is_the_same_one_and_news_copy_nothing(root: Path) -> None:
    writer = open_writer(root)
    reader = SessionReader.open(root, SESSION)
    append(writer, 300)
    first = reader.snapshot()
    assert reader.snapshot() is first
    append(writer, 1)
    second = reader.snapshot()
    assert second.unit_count == 301
    for name in ("first_pts_s", "last_pts_s", "token_counts", "position_spans"):
        assert np.shares_memory(getattr(first, name), getattr(second, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(second, name)[0] = 1
    cut = second.cut(10)
    assert (cut.unit_count, len(cut.last_pts_s), cut.durable_unit_count) == (10, 10, 10)
    with pytest.raises(ValueError, match="301"):
        second.cut(302)
    writer.close()


def test_an_old_snapshot_keeps_what_it_saw_while_the_session_grows(root: Path) -> None:
    writer = open_writer(root)
    reader = SessionReader.open(root, SESSION)
    append(writer, 5)
    old = reader.snapshot()
    before = old.last_pts_s.copy(), old.token_counts.copy()
    append(writer, 600)
    assert reader.snapshot().unit_count == 605
    assert (old.unit_count, len(old.last_pts_s)) == (5, 5)
    assert np.array_equal(old.last_pts_s, before[0])
    assert np.array_equal(old.token_counts, before[1])
    assert all(unit_is(reader, old, index) for index in range(5))
    writer.close()


def test_many_threads_read_what_was_written_while_the_session_grows(root: Path) -> None:
    writer = open_writer(root)
    append(writer, 20)
    reader = SessionReader.open(root, SESSION)
    stop = threading.Event()
    faults: list[BaseException] = []

    def read_on(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                snapshot = reader.snapshot()
                index = int(rng.integers(snapshot.unit_count))
                assert unit_is(reader, snapshot, index)
                assert unit_is(reader, snapshot, snapshot.unit_count - 1)
        except BaseException as error:
            faults.append(error)
            raise

    threads = [threading.Thread(target=read_on, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    append(writer, 300)
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    reader.close()
    writer.close()


def test_reads_finish_from_open_files_after_a_delete_and_then_the_session_is_gone(
    root: Path,
) -> None:
    built(root, 600)
    pool: FilePool[OpenFile] = FilePool(lambda: 16)
    fresh = SessionReader.open(root, SESSION, open_files=pool)
    last = fresh.snapshot()
    reader = SessionReader.open(root, SESSION, open_files=pool)
    snapshot = reader.snapshot()
    delete_session(root, SESSION)
    # Following the log has opened the last segments; the first ones were closed again.
    assert unit_is(reader, snapshot, 599)
    with pytest.raises(SessionNotFoundError):
        read_units(reader, snapshot, [0], 0)
    with pytest.raises(SessionNotFoundError):
        reader.snapshot()
    with pytest.raises(SessionNotFoundError):
        read_units(fresh, last, range(600), 1)
    with pytest.raises(SessionNotFoundError):
        SessionReader.open(root, SESSION)
    reader.close()
    fresh.close()


def test_wrong_arguments_are_refused(root: Path) -> None:
    built(root, 3)
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    count = int(snapshot.token_counts[0])
    good = np.empty((count, 2, 16), np.float32)
    cases: list[tuple[int, list[int], np.ndarray[Any, Any]]] = [
        (2, [0], good),
        (-1, [0], good),
        (0, [3], good),
        (0, [-1], good),
        (0, [0], good[:-1]),
        (0, [0], good.astype(np.float64)),
        (0, [0], np.asfortranarray(good)),
    ]
    for layer, indices, keys in cases:
        with pytest.raises(ValueError, match=r"must be|outside|contiguous"):
            reader.read(snapshot, layer, indices, keys, good)
    assert reader.read(snapshot, 0, [], good[:0], good[:0]) == []
    with pytest.raises(ValueError, match="must be"):
        reader.thumbnail(snapshot, 3)
    reader.close()


def test_a_unit_may_be_asked_for_twice_and_in_any_order(root: Path) -> None:
    built(root, 30)
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    indices = [5, 4, 3, 10, 11, 12, 13, 5, 29, 0]
    keys, values, _ = read_units(reader, snapshot, indices, 1)
    alone = [read_units(reader, snapshot, [index], 1) for index in indices]
    assert keys.tobytes() == b"".join(part[0].tobytes() for part in alone)
    assert values.tobytes() == b"".join(part[1].tobytes() for part in alone)
    reader.close()


def test_after_a_start_of_the_machine_everything_acknowledged_is_there_without_a_writer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(root)
    append(writer, 10)
    writer.flush()
    control = root / "sessions" / SESSION / "CTL"
    stale = control.read_bytes()
    append(writer, 40)
    writer.flush()
    append(writer, 1)
    ring = writer._hot.path
    # The page on the disk lags behind, the boot is another, the shared memory is gone.
    writer.close()
    control.write_bytes(stale)
    assert not ring.exists()
    monkeypatch.setattr("kvstore.control.boot_hash", lambda: 12345)
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert (snapshot.unit_count, snapshot.durable_unit_count) == (50, 50)
    assert all(unit_is(reader, snapshot, index) for index in range(50))
    assert verify_store(root).damage == ()
    writer = open_writer(root)
    append(writer, 1)
    assert reader.snapshot().unit_count == 51
    writer.close()
    reader.close()
