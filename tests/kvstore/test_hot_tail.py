"""The ring in shared memory: torn reads, what leaves when, whose file it is."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore.hotfile
from kvstore.diskio import DiskIO
from kvstore.encoding import Layout
from kvstore.errors import StoreFullError, UnitTooLargeError
from kvstore.geometry import Geometry, Tier
from kvstore.hotfile import clean_stale_hot_tails, fallback_folder
from kvstore.hottail import HotTail
from kvstore.hotview import HotTailView
from kvstore.limits import BlockLimits
from kvstore.opening import default_hot_tail_bytes
from kvstore.paths import session_hash
from kvstore.reader import SessionReader
from kvstore.unit import Unit
from tests.kvstore.samples import (
    SESSION,
    append,
    kill,
    open_writer,
    read_units,
    sample,
    unit_is,
)

BIG = Geometry(layer_count=1, kv_head_count=4, head_dim=64, element="float32")
TOKEN_COUNT = 128
RING_UNITS = 3


def big_unit(index: int) -> Unit:
    return Unit(
        index=index,
        first_pts_s=float(index),
        last_pts_s=float(index),
        token_count=TOKEN_COUNT,
        position_span=TOKEN_COUNT,
        cells=np.zeros((TOKEN_COUNT, 2), np.uint16),
        drop_fraction=0.0,
        gap_before=False,
        thumbnail_jpeg=b"",
    )


def make_ring(root: Path) -> HotTail:
    return HotTail.create(
        root,
        SESSION,
        epoch=1,
        layout=Layout(BIG),
        ring_bytes=RING_UNITS * (Layout(BIG).extent_bytes(TOKEN_COUNT) + 4096),
        first_unit=0,
        shm_dir=root,
        min_free_bytes=0,
        io=DiskIO(),
    )


def recycle(path: Path, root: Path, stop: Any) -> None:
    """Overwrite the ring at full speed; unit i is filled with the number i."""
    tail = make_ring(root)
    shape = (1, TOKEN_COUNT, BIG.kv_head_count, BIG.head_dim)
    path.with_suffix(".name").write_text(str(tail.path))
    index = 0
    while not stop.is_set():
        filled = np.full(shape, index, np.float32)
        tail.append(big_unit(index), filled, filled)
        index += 1
        if index == RING_UNITS:
            path.touch()
    tail.close()


class _NoFloorCheck(HotTailView):
    def still_holds(self, unit_index: int) -> bool:
        return True


def torn_reads(root: Path, monkeypatch: pytest.MonkeyPatch, *, floor: bool, checksum: bool) -> int:
    """Read the oldest unit again and again while it is being overwritten; count torn ones."""
    fork = multiprocessing.get_context("fork")
    stop = fork.Event()
    started = root / "started"
    process = fork.Process(target=recycle, args=(started, root, stop), daemon=True)
    process.start()
    try:
        while not started.exists():
            assert process.is_alive()
        kind = HotTailView if floor else _NoFloorCheck
        view = kind.open(
            Path(started.with_suffix(".name").read_text()),
            session_hash=session_hash(SESSION),
            epoch=1,
            layout=Layout(BIG),
        )
        assert view is not None
        if not checksum:
            monkeypatch.setattr(
                "kvstore.hotview.HotEntry.checksum_matches", lambda *arguments: True
            )
        keys, values = (np.empty((TOKEN_COUNT, 4, 64), np.float32) for _ in range(2))
        whole = refused = torn = 0
        while (whole < 300 or refused < 30) and whole + refused < 200_000:
            index = view.floor
            if not view.copy_extent(index, 0, keys, values):
                refused += 1
            elif (keys == index).all() and (values == index).all():
                whole += 1
            else:
                torn += 1
                if torn == 3:
                    break
        return torn
    finally:
        stop.set()
        process.join()


@pytest.mark.parametrize(("floor", "checksum"), [(True, True), (True, False), (False, True)])
def test_a_unit_that_is_overwritten_during_the_copy_is_never_served(
    root: Path, monkeypatch: pytest.MonkeyPatch, floor: bool, checksum: bool
) -> None:
    assert torn_reads(root, monkeypatch, floor=floor, checksum=checksum) == 0


def test_a_reader_that_checks_nothing_serves_torn_units(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert torn_reads(root, monkeypatch, floor=False, checksum=False) > 0


def test_a_unit_leaves_the_ring_only_once_it_is_durable(root: Path) -> None:
    never = BlockLimits(block_tokens=10**6, block_span_s=1e9, min_free_bytes=0)
    writer = open_writer(root, limits=never, hot_tail_bytes=32 * 1024)
    reader = SessionReader.open(root, SESSION)
    for index in range(100):
        append(writer, 1)
        floor = writer._hot._words[7]
        assert floor <= writer.durable_unit_count
        assert all(unit_is(reader, reader.snapshot(), i) for i in range(max(0, index - 12), index))
    # Nothing asked for these commits but the ring.
    assert 0 < writer.durable_unit_count < 100
    writer.close()


def test_a_ring_of_no_given_size_lets_blocks_become_full(root: Path) -> None:
    limits = BlockLimits(block_tokens=8 * TOKEN_COUNT, block_span_s=1e9, min_free_bytes=0)
    writer = open_writer(root, geometry=BIG, limits=limits, hot_tail_bytes=None)
    durable = []
    for index in range(20):
        writer.append(*sample(index, geometry=BIG, token_count=TOKEN_COUNT), resume=b"")
        writer.publish()
        durable.append(writer.durable_unit_count)
    assert durable == [0] * 8 + [8] * 8 + [16] * 4
    reader = SessionReader.open(root, SESSION)
    tiers = read_units(reader, reader.snapshot(), range(20), 0)[2]
    assert set(tiers[4:]) == {Tier.HOT}
    reader.close()
    writer.close()


def test_a_ring_of_no_given_size_has_a_bound_that_the_log_tells_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    large = Geometry(layer_count=28, kv_head_count=4, head_dim=128, element="float16")
    for block_tokens, expected in ((4096, 3 * 28 * 4096 * 2048), (8192, 2**30)):
        limits = BlockLimits(block_tokens=block_tokens)
        assert default_hot_tail_bytes(SESSION, Layout(large), limits) == expected
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.__dict__["hot_tail_bytes"] == 2**30


def test_more_units_than_slots_leave_in_order(root: Path) -> None:
    geometry = Geometry(layer_count=1, kv_head_count=1, head_dim=1, element="float16")
    writer = open_writer(root, geometry=geometry, hot_tail_bytes=64 * 1024)
    reader = SessionReader.open(root, SESSION)
    zeros = np.zeros((1, 1, 1, 1), np.float16)
    for index in range(500):
        unit = dataclasses.replace(
            sample(index, geometry=geometry, token_count=1)[0], thumbnail_jpeg=b""
        )
        writer.append(unit, zeros, zeros, resume=b"")
        writer.publish()
    tiers = read_units(reader, reader.snapshot(), range(500), 0)[2]
    assert tiers.count(Tier.HOT) == 64
    assert set(tiers[-64:]) == {Tier.HOT}
    writer.close()


def test_a_unit_larger_than_the_ring_is_refused_and_the_writer_lives_on(root: Path) -> None:
    writer = open_writer(root)
    append(writer, 2)
    with pytest.raises(UnitTooLargeError) as error:
        writer.append(*sample(2, token_count=400), resume=b"")
    assert error.value.hot_tail_bytes == 64 * 1024
    append(writer, 2)
    writer.flush()
    assert writer.durable_unit_count == 4
    writer.close()


def test_hot_tails_of_dead_writers_are_removed_and_those_of_the_living_are_not(root: Path) -> None:
    shm_dir = root / "shm"
    living = open_writer(root)
    kill(living)
    (stale,) = shm_dir.iterdir()
    other_root = root / "other"
    other_root.mkdir()
    other = open_writer(other_root, shm_dir=shm_dir)
    assert clean_stale_hot_tails(root, shm_dir=shm_dir) == 1
    assert not stale.exists()
    assert other._hot.path.exists()
    # Another root's file is not ours, dead or alive.
    kill(other)
    assert clean_stale_hot_tails(root, shm_dir=shm_dir) == 0
    assert clean_stale_hot_tails(other_root, shm_dir=shm_dir) == 1
    mine = open_writer(root)
    assert clean_stale_hot_tails(root, shm_dir=shm_dir) == 0
    mine.close()
    assert list(shm_dir.iterdir()) == []


def test_the_file_name_tells_user_session_epoch_and_process(root: Path) -> None:
    writer = open_writer(root)
    name = writer._hot.path.name
    assert name.startswith(f"lookback-{os.getuid()}-")
    assert name.endswith(f"-{SESSION}-1-{os.getpid()}.hot")
    assert writer._hot.path.stat().st_mode & 0o777 == 0o600
    writer.close()


class _TinySharedMemory(DiskIO):
    """A container's /dev/shm: full at once, by the numbers or only when it is asked."""

    def __init__(self, shm_dir: Path, *, admits_it: bool) -> None:
        self._shm_dir = shm_dir
        self._admits_it = admits_it

    def free_bytes(self, folder: Path) -> int:
        full = folder == self._shm_dir and self._admits_it
        return 1000 if full else super().free_bytes(folder)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{fd}")).parent == self._shm_dir:
            raise OSError(28, "No space left on device")
        super().fallocate(fd, offset, length)


@pytest.mark.parametrize("admits_it", [True, False])
def test_without_room_in_shared_memory_the_ring_lies_in_the_store_and_one_line_says_so(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    admits_it: bool,
) -> None:
    tiny = root / "tiny-shm"
    tiny.mkdir()
    monkeypatch.setattr(kvstore.hotfile, "DEFAULT_SHM_DIR", tiny)
    io = _TinySharedMemory(tiny, admits_it=admits_it)
    with caplog.at_level(logging.WARNING):
        writer = open_writer(root, shm_dir=None, io=io)
    lines = [record for record in caplog.records if record.name == "kvstore.hotfile"]
    assert [line.getMessage() for line in lines] == [
        "shared memory has no room for the hot tail, using the store's folder"
    ]
    assert list(tiny.iterdir()) == []
    assert writer._hot.path.parent == fallback_folder(root)
    append(writer, 30)
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert snapshot.unit_count == 30
    assert all(unit_is(reader, snapshot, index) for index in range(30))
    kill(writer)
    assert clean_stale_hot_tails(root) == 1


def held_bytes(folder: Path) -> int:
    """Memory of the folder's files, those that were removed and are still mapped here included."""
    found: dict[int, int] = {}
    for path in (*folder.iterdir(), *Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            if os.path.realpath(path).startswith(f"{folder}/"):
                status = path.stat()
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def test_the_memory_of_a_push_that_ended_is_free_while_questions_still_hold_its_units(
    root: Path,
) -> None:
    writer = open_writer(root)
    append(writer, 4)
    reader = SessionReader.open(root, SESSION)
    before = reader.snapshot()
    assert read_units(reader, before, range(4), 0)[2] == [Tier.HOT] * 4
    assert held_bytes(root / "shm") > 64 * 1024
    writer.flush()
    writer.close()
    assert held_bytes(root / "shm") == 4096  # says that nothing is here any more
    assert all(unit_is(reader, before, unit) for unit in range(4))
    assert read_units(reader, before, range(4), 0)[2] == [Tier.DISK] * 4
    assert all(len(reader.cells(before, unit)) for unit in range(4))
    after = reader.snapshot()
    assert after.unit_count == 4
    assert held_bytes(root / "shm") == 4096  # `before` holds it
    del before
    assert held_bytes(root / "shm") == 0
    reader.close()


def test_units_that_were_never_durable_stay_readable_as_long_as_a_question_holds_them(
    root: Path,
) -> None:
    writer = open_writer(root)
    append(writer, 4)
    writer.flush()
    append(writer, 2)
    reader = SessionReader.open(root, SESSION)
    before = reader.snapshot()
    writer.close()
    after = reader.snapshot()
    assert (before.unit_count, after.unit_count) == (6, 4)
    assert read_units(reader, before, range(6), 0)[2] == [Tier.HOT] * 6
    assert after.hot_tail is None
    del before
    assert held_bytes(root / "shm") == 0
    reader.close()


def test_a_folder_that_was_asked_for_is_not_replaced_by_another(root: Path) -> None:
    shm_dir = root / "shm"
    shm_dir.mkdir()
    with pytest.raises(StoreFullError) as error:
        open_writer(root, io=_TinySharedMemory(shm_dir, admits_it=True))
    assert error.value.path == shm_dir
    assert list(shm_dir.iterdir()) == []
    open_writer(root).close()


def test_a_reader_without_access_to_the_ring_serves_what_is_durable(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = open_writer(root)
    append(writer, 3)
    writer.flush()
    append(writer, 2)
    aside = writer._hot.path.with_suffix(".aside")
    writer._hot.path.rename(aside)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        reader = SessionReader.open(root, SESSION)
    assert [record.getMessage() for record in caplog.records] == [
        "hot tail out of reach, serving durable units only"
    ]
    assert reader.snapshot().unit_count == 3
    writer.flush()
    assert reader.snapshot().unit_count == 5
    aside.rename(writer._hot.path)
    writer.close()


def test_a_view_keeps_no_more_tables_than_the_ring_has_units_and_some(root: Path) -> None:
    writer = open_writer(root, hot_tail_bytes=512 * 1024)
    reader = SessionReader.open(root, SESSION)
    most_held = most_kept = 0
    for _ in range(120):
        append(writer, 10)
        snapshot = reader.snapshot()
        view = snapshot.hot_tail
        assert view is not None
        newest = range(snapshot.unit_count - 10, snapshot.unit_count)
        assert all(view.entry(unit) is not None for unit in newest)
        most_held = max(most_held, snapshot.unit_count - view.floor)
        most_kept = max(most_kept, len(view._entries))
    assert view.floor > 800
    assert most_kept <= most_held + 257
    reader.close()
    writer.close()
