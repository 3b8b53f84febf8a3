"""Readers beside a writer that thins: the bytes that were stored, or word that they are fewer."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from kvstore.errors import UnitsThinnedError
from kvstore.export import export_session
from kvstore.guarded import GuardedReader
from kvstore.importing import import_session
from kvstore.reader import SessionReader
from kvstore.readpool import Reading, ReadPool
from kvstore.session import create_session
from kvstore.snapshot import Snapshot
from kvstore.verify import verify_store
from tests.kvstore.samples import SESSION, read_units
from tests.kvstore.test_archive import RECORD
from tests.kvstore.thinned import (
    SCENE,
    append_scenes,
    check_all,
    is_part_of,
    scene,
    thinning_writer,
)

_FORK = multiprocessing.get_context("fork")


def read_right(reader: SessionReader, snapshot: Snapshot, index: int) -> tuple[Snapshot, int]:
    """Check a unit, going on with fewer tokens where it is told to; the snapshot, times told."""
    told = 0
    while True:
        try:
            assert is_part_of(reader, snapshot, index), f"unit {index} of {snapshot}"
        except UnitsThinnedError as error:
            snapshot = snapshot.thinned(error.unit_indices, error.token_counts)
            told += 1
            continue
        return snapshot, told


def _read_on(told: Connection, root: Path, seed: int) -> None:
    rng = random.Random(seed)
    reader = SessionReader.open(root, SESSION)
    read = thinned = 0
    while not told.poll():
        snapshot = reader.snapshot()
        for _ in range(30):
            index = rng.randrange(snapshot.unit_count)
            snapshot, times = read_right(reader, snapshot, index)
            thinned += times
            read += 1
            if rng.random() < 0.05:  # as another question does, or the bound on open files
                reader.snapshot()
            if rng.random() < 0.05:
                reader._files.forget(0)
    told.send((read, thinned))


@contextmanager
def readers(root: Path, count: int) -> Iterator[list[Connection]]:
    """Processes that read until the end."""
    ours, processes = [], []
    for seed in range(count):
        mine, theirs = _FORK.Pipe()
        process = _FORK.Process(target=_read_on, args=(theirs, root, seed), daemon=True)
        process.start()
        theirs.close()
        ours.append(mine)
        processes.append(process)
    yield ours
    for process in processes:
        process.join(30)
        assert process.exitcode == 0


def test_readers_of_other_processes_never_get_wrong_bytes(root: Path) -> None:
    writer = thinning_writer(root)
    append_scenes(writer, 8)
    read = thinned = 0
    with readers(root, 2) as processes:
        for _ in range(80):
            append_scenes(writer, 3)
            time.sleep(0.01)
        for process in processes:
            process.send("end")
        for process in processes:
            counts = process.recv()
            read += counts[0]
            thinned += counts[1]
    writer.close()
    assert read > 500
    assert thinned > 20  # questions were in the middle when it happened


def test_a_reader_in_the_middle_is_told_all_counts_at_once(root: Path) -> None:
    writer = thinning_writer(root)
    append_scenes(writer, 50)
    reader = SessionReader.open(root, SESSION)
    before = reader.snapshot()
    read_units(reader, before, range(0, 50, 7), 0)
    append_scenes(writer, 50)
    now = reader.snapshot()  # another question's
    with pytest.raises(UnitsThinnedError) as caught:
        read_units(reader, before, range(0, 50, 7), 1)
    told = caught.value
    changed = np.flatnonzero(now.token_counts[:50] != before.token_counts)
    assert told.unit_indices == tuple(changed.tolist())
    assert told.token_counts == tuple(now.token_counts[changed].tolist())
    after = before.thinned(told.unit_indices, told.token_counts)
    assert after.coarsened.tolist() == now.coarsened[:50].tolist()
    assert not before.coarsened.any()  # what was handed out stays as it was
    assert (before.token_counts == 32).all()
    for index in range(50):
        assert is_part_of(reader, after, index)
    with pytest.raises(UnitsThinnedError):
        reader.cells(before, 0)
    reader.close()
    writer.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_reads_by_several_threads_and_ahead_are_told_too(root: Path, ahead: int) -> None:
    writer = thinning_writer(root)
    append_scenes(writer, 50)
    reader = SessionReader.open(root, SESSION)
    pool = ReadPool(3, ahead_thread_count=ahead, least_part_bytes=1)
    guarded = GuardedReader(reader, pool, Reading())
    snapshot = reader.snapshot()
    units = list(range(0, 50, 3))

    def read(layer: int) -> None:
        shape = (int(snapshot.token_counts[units].sum()), SCENE.kv_head_count, SCENE.head_dim)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        guarded.read(snapshot, layer, units, keys, values)
        start = 0
        for unit in units:
            stop = start + int(snapshot.token_counts[unit])
            places = (reader.cells(snapshot, unit).astype(int) @ [8, 1]).tolist()
            _, *made = scene(unit)
            for got, wanted in zip((keys, values), made, strict=True):
                assert got[start:stop].tobytes() == wanted[layer][places].tobytes()
            start = stop

    read(0)
    append_scenes(writer, 50)
    reader.snapshot()
    with pytest.raises(UnitsThinnedError) as caught:
        read(1)
    snapshot = snapshot.thinned(caught.value.unit_indices, caught.value.token_counts)
    read(1)
    read(0)
    guarded.end()
    pool.close()
    reader.close()
    writer.close()


def test_an_export_that_has_begun_gives_the_session_as_it_was(root: Path) -> None:
    create_session(root, RECORD)
    writer = thinning_writer(root)
    append_scenes(writer, 52)
    writer.flush()
    path = root / "archive"
    begun = False

    def thin_meanwhile(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            begun = True
            append_scenes(writer, 60)

    with open(path, "wb") as out:
        export_session(root, SESSION, out, thin_meanwhile)
    assert begun
    writer.close()
    other = root / "other"
    with open(path, "rb") as archive:
        import_session(other, archive)
    assert not check_all(other, 52).coarsened.any()


def test_a_check_beside_a_writer_that_thins_finds_no_damage(root: Path) -> None:
    create_session(root, RECORD)
    writer = thinning_writer(root)
    append_scenes(writer, 52)
    slices = 0

    def append_now_and_then(*_: int) -> None:
        nonlocal slices
        slices += 1
        append_scenes(writer, slices % 8 == 0)

    for _ in range(6):
        append_scenes(writer, 8)
        assert verify_store(root, append_now_and_then).damage == ()
    assert check_all(root, writer.visible_unit_count).coarsened.any()
    writer.close()


def test_quantised_units_are_read_right_in_the_middle_too(root: Path) -> None:
    writer = thinning_writer(root, encoding="int8", hot_tail_bytes=64 * 1024)
    append_scenes(writer, 160)
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    told = 0
    for index in range(0, 160, 5):
        append_scenes(writer, 2)
        if index % 10 == 0:
            reader.snapshot()
        snapshot, times = read_right(reader, snapshot, index)
        told += times
    assert told
    reader.close()
    writer.close()
