"""Unit tables are read when they are needed: whatever the cache forgot, answers are the same."""

from __future__ import annotations

import errno
import gc
import random
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.blockread import BlockPlace
from kvstore.errors import BlockCorruptError, UnitDroppedError, UnitsThinnedError
from kvstore.format import PAGE_BYTES
from kvstore.geometry import Geometry
from kvstore.limits import BlockLimits
from kvstore.paths import segment_path
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.tablecache import TableCache, held_bytes
from kvstore.unit import Unit
from kvstore.writer import SessionWriter
from tests.kvstore.dropped import dropping_writer
from tests.kvstore.samples import SESSION, append, open_writer, read_units, unit_is
from tests.kvstore.test_damage import build, folder_of, overwrite
from tests.kvstore.test_dropping import floor_of
from tests.kvstore.test_thinning_readers import read_right
from tests.kvstore.thinned import append_scenes, is_part_of, thinning_writer

LIMIT_BYTES = 16 * 1024
UNIT_COUNT = 30
Read = Callable[[SessionReader, int], object]

READS: dict[str, Read] = {
    "read": lambda reader, unit: read_units(reader, reader.known(), [unit], 1),
    "cells": lambda reader, unit: reader.cells(reader.known(), unit),
    "thumbnail": lambda reader, unit: reader.thumbnail(reader.known(), unit),
    "mean_keys": lambda reader, unit: reader.mean_keys(reader.known(), [unit]),
    "stored_slice": lambda reader, unit: reader.stored_slice(reader.known(), unit, 0),
}


@pytest.fixture(params=[0, LIMIT_BYTES, 1 << 20], ids=["none kept", "a few kept", "all kept"])
def tables(request: pytest.FixtureRequest) -> TableCache:
    return TableCache(request.param)


def open_reader(root: Path, tables: TableCache) -> SessionReader:
    return SessionReader.open(root, SESSION, tables=tables)


def evict(reader: SessionReader) -> None:
    """As if other sessions had been asked about meanwhile, files and all."""
    reader._units._tables.forget(reader._units._number)
    reader._files.forget(0)


def test_many_open_sessions_that_are_asked_stay_within_the_limit(root: Path) -> None:
    tables = TableCache(LIMIT_BYTES)
    readers = []
    table_bytes = 0
    for name in "abcde":
        build(root / name, 60)
        readers.append(open_reader(root / name, tables))
        table_bytes += sum(place.header.table_bytes for place in readers[-1].places)
    assert tables.held_bytes == 0  # what nobody asked for is not kept
    assert table_bytes > LIMIT_BYTES
    for unit in random.Random(1).sample(range(60), 60):
        for reader in readers:
            assert unit_is(reader, reader.snapshot(), unit)
            assert 0 < tables.held_bytes <= LIMIT_BYTES
    for left in (4, 3, 2, 1, 0):
        readers.pop().close()
        assert bool(left) == bool(tables.held_bytes)


def test_a_table_that_is_kept_is_not_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(root)
    tables = TableCache(1 << 20)
    reader = open_reader(root, tables)
    snapshot = reader.snapshot()
    read_units(reader, snapshot, range(UNIT_COUNT), 0)
    assert tables.held_bytes == sum(
        held_bytes(reader._units.locate(snapshot, place.header.first_unit, 0)[0])
        for place in reader.places
    )

    def refuse(*args: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("kvstore.unitplaces.read_block", refuse)
    assert all(unit_is(reader, snapshot, index) for index in range(UNIT_COUNT))
    evict(reader)
    with pytest.raises(AssertionError, match="read again"):
        reader.cells(snapshot, 0)
    reader.close()


@pytest.mark.parametrize(("ram", "most_bytes"), [(False, 120), (True, 120 + 2 * 8 * 28)])
def test_an_open_session_keeps_columns_and_no_tables(
    root: Path, ram: bool, most_bytes: int
) -> None:
    geometry = Geometry(layer_count=28, kv_head_count=1, head_dim=1, element="float16")
    tier = RamTier(root, shm_dir=root) if ram else None
    taken: list[int] = []
    for name, unit_count in (("few", 512), ("many", 4096)):
        write_tiny(root / name, geometry, unit_count)
        gc.collect()
        tracemalloc.start()
        reader = SessionReader.open(root / name, SESSION, ram=tier, tables=TableCache(0))
        snapshot = reader.snapshot()
        for unit in range(0, unit_count, 16):
            reader.cells(snapshot, unit)
        gc.collect()
        taken.append(allocated_bytes())
        tracemalloc.stop()
        tables_bytes = sum(place.header.table_bytes for place in reader.places)
        assert tables_bytes > 290 * unit_count
        reader.close()
    assert (taken[1] - taken[0]) / (4096 - 512) < most_bytes


def allocated_bytes() -> int:
    """What lines of the store allocated: strings that the interpreter keeps may come any time."""
    own = tracemalloc.Filter(True, str(Path(kvstore.__file__).parent / "*"))
    found = tracemalloc.take_snapshot().filter_traces([own])
    return sum(trace.size for trace in found.traces)


def write_tiny(root: Path, geometry: Geometry, unit_count: int) -> None:
    """A session of units of one token, eight in a block."""
    limits = BlockLimits(block_tokens=8, block_span_s=1e9, min_free_bytes=0)
    root.mkdir()
    writer = SessionWriter.open(root, SESSION, geometry=geometry, limits=limits, shm_dir=root)
    shape = (geometry.layer_count, 1, geometry.kv_head_count, geometry.head_dim)
    zeros = np.zeros(shape, geometry.storage_dtype)
    for index in range(unit_count):
        unit = Unit(
            index=index,
            first_pts_s=float(index),
            last_pts_s=float(index),
            token_count=1,
            position_span=1,
            cells=np.zeros((1, 2), np.uint16),
            drop_fraction=0.0,
            gap_before=False,
            thumbnail_jpeg=b"",
        )
        writer.append(unit, zeros, zeros, resume=b"")
        writer.publish()
    writer.flush()
    writer.close()


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_table_damaged_after_it_was_met_is_named_and_heals(
    root: Path, tables: TableCache, read: Read
) -> None:
    block = build(root)[2]
    reader = open_reader(root, tables)
    unit = block.header.first_unit
    read(reader, unit)
    evict(reader)
    flip_table(root, block)
    for _ in range(2):
        with pytest.raises(BlockCorruptError, match="unit table") as error:
            read(reader, unit)
        assert error.value.block_index == block.header.sequence
    read(reader, 0)  # of another block
    flip_table(root, block)
    read(reader, unit)
    snapshot = reader.snapshot()
    assert all(unit_is(reader, snapshot, index) for index in range(UNIT_COUNT))
    reader.close()


def test_a_damaged_file_that_is_put_back_under_its_name_is_read(
    root: Path, tables: TableCache
) -> None:
    block = build(root)[2]
    path = segment_path(folder_of(root), block.segment_number)
    shutil.copy(path, root / "copy")
    reader = open_reader(root, tables)
    snapshot = reader.snapshot()
    evict(reader)
    flip_table(root, block)
    with pytest.raises(BlockCorruptError):
        reader.cells(snapshot, block.header.first_unit)
    (root / "copy").rename(path)  # the damaged one is open, and has no name any more
    assert unit_is(reader, snapshot, block.header.first_unit)
    reader.close()


def test_a_table_that_the_disk_refuses_is_named(
    root: Path, tables: TableCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(root)
    reader = open_reader(root, tables)
    snapshot = reader.snapshot()

    def fail(code: int) -> Callable[..., None]:
        def read(*args: Any) -> None:
            raise OSError(code, "failed")

        return read

    with monkeypatch.context() as disk:
        disk.setattr("kvstore.unitplaces.read_block", fail(errno.EIO))
        with pytest.raises(BlockCorruptError) as error:
            reader.cells(snapshot, 0)
        assert error.value.block_index == 0
        disk.setattr("kvstore.unitplaces.read_block", fail(errno.ENOMEM))
        with pytest.raises(OSError, match="failed"):  # a fault of the process is no damage
            reader.cells(snapshot, 0)
    assert unit_is(reader, snapshot, 0)
    reader.close()


def flip_table(root: Path, block: BlockPlace) -> None:
    """Flip the bits of a byte in the last row's checksums, or flip them back."""
    offset = PAGE_BYTES + block.header.table_bytes - 3
    with open(segment_path(folder_of(root), block.segment_number), "rb") as file:
        file.seek(block.offset + offset)
        byte = file.read(1)[0]
    overwrite(root, block, offset, bytes([byte ^ 0x40]))


@pytest.mark.parametrize("keeps_files", [True, False])
def test_a_segment_thinned_before_its_table_is_read_again_is_met(
    root: Path, tables: TableCache, keeps_files: bool
) -> None:
    writer = thinning_writer(root)
    append_scenes(writer, 50)
    reader = open_reader(root, tables)
    snapshot = reader.snapshot()
    old = snapshot
    told = 0
    for _ in range(5):
        append_scenes(writer, 30)
        for index in range(50):
            if not keeps_files:
                evict(reader)
            snapshot, times = read_right(reader, snapshot, index)
            told += times
        reader.snapshot()
    assert told > 1
    with pytest.raises(UnitsThinnedError):
        reader.cells(old, 0)
    reader.close()
    writer.close()


def test_a_segment_dropped_before_its_table_is_read_again_is_told(
    root: Path, tables: TableCache
) -> None:
    writer = dropping_writer(root)
    append(writer, 60)
    reader = open_reader(root, tables)
    snapshot = reader.snapshot()
    assert unit_is(reader, snapshot, 0)
    while not (floor := floor_of(root)).first_unit:
        append(writer, 10)
    evict(reader)
    for read in (lambda: read_units(reader, snapshot, [0], 0), lambda: reader.cells(snapshot, 0)):
        with pytest.raises(UnitDroppedError) as error:
            read()
        assert error.value.first_unit == floor.first_unit
    assert unit_is(reader, snapshot, 59)
    reader.close()
    writer.close()


def test_a_new_epoch_cuts_what_is_known_and_tables_are_those_of_its_blocks(
    root: Path, tables: TableCache
) -> None:
    writer = open_writer(root)
    append(writer, 20)
    writer.flush()
    reader = open_reader(root, tables)
    for epoch in range(3):
        writer.close()
        writer = open_writer(root)
        append(writer, 20)
        writer.flush()
        snapshot = reader.snapshot()
        assert snapshot.unit_count == 40 + 20 * epoch
        assert all(unit_is(reader, snapshot, index) for index in range(snapshot.unit_count))
    reader.close()
    writer.close()


def test_many_threads_read_right_while_tables_come_and_go(root: Path) -> None:
    tables = TableCache(LIMIT_BYTES)
    writer = thinning_writer(root / "thinned")
    append_scenes(writer, 60)
    build(root / "whole", 60)
    readers = [open_reader(root / name, tables) for name in ("thinned", "whole")]
    ended = threading.Event()
    read_counts: list[int] = []
    failures: list[BaseException] = []

    def read_on(seed: int) -> None:
        rng = random.Random(seed)
        snapshots = [reader.snapshot() for reader in readers]
        count = 0
        try:
            while not ended.is_set():
                index = rng.randrange(60)
                if seed % 2:
                    assert unit_is(readers[1], snapshots[1], index)
                else:
                    snapshots[0], _ = read_right(readers[0], snapshots[0], index)
                if rng.random() < 0.2:
                    readers[0]._files.forget(0)
                count += 1
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)
        read_counts.append(count)

    threads = [threading.Thread(target=read_on, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(20):  # forty segments are written anew meanwhile
        append_scenes(writer, 3)
        if failures:
            break
    ended.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert min(read_counts) > 5
    assert 0 < tables.held_bytes <= LIMIT_BYTES
    assert all(is_part_of(readers[0], readers[0].snapshot(), index) for index in range(120))
    for reader in readers:
        reader.close()
    assert tables.held_bytes == 0
    writer.close()
