"""Reads shared by threads give what one thread gives, in order, and end when nobody wants them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.errors import ReadGivenUpError, SliceCorruptError
from kvstore.geometry import Tier
from kvstore.guarded import GuardedReader
from kvstore.reader import SessionReader
from kvstore.readpool import Reading, ReadPool
from kvstore.readsteps import ReadSteps
from kvstore.snapshot import Snapshot
from tests.kvstore.damaging import flip_byte_of
from tests.kvstore.samples import SESSION, append, open_writer

UNIT_COUNT = 60
LAYER = 1
JOIN_S = 20.0
"""How long a test that failed waits for threads."""


@pytest.fixture
def reader(root: Path) -> Iterator[SessionReader]:
    """Of a live session: the newest units are in shared memory, the others on disk."""
    writer = open_writer(root)
    append(writer, UNIT_COUNT)
    reader = SessionReader.open(root, SESSION)
    yield reader
    reader.close()
    writer.close()


@pytest.fixture
def pool() -> Iterator[ReadPool]:
    """Four threads that are given single units."""
    pool = ReadPool(4, least_part_bytes=1)
    yield pool
    pool.close()


def arrays(
    reader: SessionReader, snapshot: Snapshot, units: list[int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    geometry = reader.geometry
    assert geometry is not None
    count = int(snapshot.token_counts[units].sum())
    shape = (count, geometry.kv_head_count, geometry.head_dim)
    return np.zeros(shape, geometry.storage_dtype), np.zeros(shape, geometry.storage_dtype)


@pytest.mark.parametrize("thread_count", [1, 2, 4, 100])
def test_many_threads_read_what_one_reads_in_the_order_asked(
    reader: SessionReader, thread_count: int
) -> None:
    pool = ReadPool(thread_count, least_part_bytes=1)
    snapshot = reader.snapshot()
    rng = random.Random(thread_count)
    seen: set[Tier] = set()
    for size in (0, 1, 2, 7, 33, UNIT_COUNT):
        units = [rng.randrange(UNIT_COUNT) for _ in range(size)]
        alone, together = arrays(reader, snapshot, units), arrays(reader, snapshot, units)
        tiers = reader.read(snapshot, LAYER, units, *alone)
        guarded = GuardedReader(reader, pool, Reading())
        assert guarded.read(snapshot, LAYER, units, *together) == tiers
        for one, other in zip(alone, together, strict=True):
            assert one.tobytes() == other.tobytes()
        seen |= set(tiers)
    assert seen == {Tier.HOT, Tier.DISK}
    pool.close()


def test_work_is_shared_out_and_small_reads_are_not(
    reader: SessionReader, pool: ReadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, units = reader.snapshot(), list(range(UNIT_COUNT))
    names: set[str] = set()
    meeting = threading.Barrier(4)
    read_part = ReadSteps._read_part

    def noting(self: ReadSteps, *arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        if many:
            meeting.wait(JOIN_S)
        return read_part(self, *arguments)

    monkeypatch.setattr(ReadSteps, "_read_part", noting)
    many = True
    GuardedReader(reader, pool, Reading()).read(
        snapshot, LAYER, units, *arrays(reader, snapshot, units)
    )
    assert len(names) == 4
    many = False
    names.clear()
    large_parts = ReadPool(4)
    GuardedReader(reader, large_parts, Reading()).read(
        snapshot, LAYER, units, *arrays(reader, snapshot, units)
    )
    assert names == {threading.current_thread().name}
    large_parts.close()


def test_damage_in_several_parts_is_told_at_once(
    reader: SessionReader, root: Path, pool: ReadPool
) -> None:
    snapshot = reader.snapshot()
    on_disk = [
        unit
        for unit in range(UNIT_COUNT)
        if reader.read(snapshot, LAYER, [unit], *arrays(reader, snapshot, [unit])) == [Tier.DISK]
    ]
    damaged = [on_disk[0], on_disk[len(on_disk) // 2], on_disk[-1]]
    for unit in damaged:
        keys, values = arrays(reader, snapshot, [unit])
        reader.read(snapshot, LAYER, [unit], keys, values)
        flip_byte_of(root, SESSION, keys.tobytes())
    with pytest.raises(SliceCorruptError) as error:
        GuardedReader(reader, pool, Reading()).read(
            snapshot, LAYER, on_disk, *arrays(reader, snapshot, on_disk)
        )
    assert [each.unit_index for each in error.value.damaged] == damaged


class Gate:
    """A disk whose reads wait until they are let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.begun_count = self.ended_count = 0
        self._lock = threading.Lock()
        self._preadv = os.preadv
        monkeypatch.setattr("os.preadv", self._read)

    def _read(self, fd: int, buffers: Any, offset: int) -> int:
        with self._lock:
            self.begun_count += 1
        self.begun.release()
        self.open.wait(JOIN_S)
        count = self._preadv(fd, buffers, offset)
        with self._lock:
            self.ended_count += 1
        return count


def given_up_read(
    reader: SessionReader, pool: ReadPool, monkeypatch: pytest.MonkeyPatch
) -> tuple[Gate, int]:
    """Gives a read up while four disk reads are under way; returns how many had begun then."""
    monkeypatch.setattr("kvstore.readsteps._UNITS_PER_BATCH", 1)
    snapshot = reader.snapshot()
    units = list(range(40))
    outputs = arrays(reader, snapshot, units)
    gate, reading = Gate(monkeypatch), Reading()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            GuardedReader(reader, pool, reading).read(snapshot, LAYER, units, *outputs)
        except ReadGivenUpError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(4):
        assert gate.begun.acquire(timeout=JOIN_S)
    reading.give_up()
    begun_count = gate.begun_count
    gate.open.set()
    thread.join(JOIN_S)
    assert not thread.is_alive()
    assert errors
    return gate, begun_count


def test_what_nobody_wants_ends_with_the_reads_that_had_begun(
    reader: SessionReader, pool: ReadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun_count = given_up_read(reader, pool, monkeypatch)
    assert (gate.begun_count, gate.ended_count) == (begun_count, begun_count)


def test_the_test_sees_a_read_that_goes_on(
    reader: SessionReader, pool: ReadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reading, "check", lambda reading: None)
    with pytest.raises(AssertionError):
        given_up_read(reader, pool, monkeypatch)


def test_a_deadline_that_passed_ends_a_read(reader: SessionReader, pool: ReadPool) -> None:
    snapshot = reader.snapshot()
    past = Reading(deadline_s=time.perf_counter() - 1.0)
    with pytest.raises(ReadGivenUpError, match="deadline"):
        GuardedReader(reader, pool, past).read(
            snapshot, LAYER, [0, 1], *arrays(reader, snapshot, [0, 1])
        )


def test_a_read_that_fails_returns_when_no_thread_fills_its_arrays(
    reader: SessionReader, pool: ReadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, units = reader.snapshot(), list(range(UNIT_COUNT))
    running = 0
    lock = threading.Lock()
    meeting = threading.Barrier(4)
    read_part = ReadSteps._read_part

    def counting(self: ReadSteps, *arguments: Any) -> Any:
        nonlocal running
        with lock:
            running += 1
        meeting.wait(JOIN_S)  # all four have begun
        try:
            if arguments[2][0].place == 0:
                raise RuntimeError("broken")
            return read_part(self, *arguments)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(ReadSteps, "_read_part", counting)
    with pytest.raises(RuntimeError, match="broken"):
        GuardedReader(reader, pool, Reading()).read(
            snapshot, LAYER, units, *arrays(reader, snapshot, units)
        )
    assert running == 0


def test_what_was_read_ahead_in_vain_is_not_running_after_the_end(
    reader: SessionReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ReadPool(1, ahead_thread_count=2)
    snapshot = reader.snapshot()
    guarded = GuardedReader(reader, pool, Reading())
    first = [0, 1, 2, 3, 4, 5]
    guarded.read(snapshot, 0, first, *arrays(reader, snapshot, first))
    assert guarded.ahead is not None
    guarded.end()
    gate = Gate(monkeypatch)
    guarded.read(snapshot, 1, [], *arrays(reader, snapshot, []))  # none of them is wanted
    guarded.ahead.begin(snapshot, 1, first, as_stored=False)
    for _ in range(2):
        assert gate.begun.acquire(timeout=JOIN_S)
    ending = threading.Thread(target=guarded.end)
    ending.start()
    assert gate.ended_count == 0
    assert ending.is_alive()
    gate.open.set()
    ending.join(JOIN_S)
    assert (gate.begun_count, gate.ended_count) == (2, 2)  # the other four never began
    pool.close()
