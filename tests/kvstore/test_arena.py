"""The RAM tier: right bytes or none, memory within its budget, and nothing left by the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstore.arena import Arena
from kvstore.arenalayout import SliceKey, key_hashes
from kvstore.arenaview import ArenaView
from kvstore.budget import DiskBudget
from kvstore.deletion import delete_session
from kvstore.diskio import DiskIO
from kvstore.encoding import Encoding, Layout
from kvstore.errors import SnapshotExpiredError, StoreFullError, UnitDroppedError
from kvstore.geometry import Tier
from kvstore.hottail import file_bytes
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.session import SessionRecord, create_session
from kvstore.sharedfile import clean_stale_files, shared_files
from kvstore.writer import SessionWriter
from tests.kvstore import arena_lives
from tests.kvstore.samples import (
    LIMITS,
    SESSION,
    SMALL,
    append,
    kill,
    open_writer,
    read_unit,
    read_units,
    sample,
    unit_is,
)

SLOT_BYTES = Layout(SMALL).extent_bytes(12)
KIB = 1024


@pytest.fixture
def shm(root: Path) -> Path:
    folder = root / "shm"
    folder.mkdir()
    return folder


def make_arena(root: Path, budget_bytes: int = 512 * KIB, slot_bytes: int = SLOT_BYTES) -> Arena:
    return Arena.create(
        root, budget_bytes=budget_bytes, slot_bytes=slot_bytes, shm_dir=root / "shm"
    )


def slice_of(unit: int, byte_count: int = 512, session: int = 7) -> tuple[SliceKey, np.ndarray]:
    data = np.frombuffer(np.random.default_rng(unit).bytes(byte_count), np.uint8)
    return SliceKey(session, unit, 0, xxhash.xxh3_64_intdigest(data.data)), data


def keep(arena: Arena, unit: int, session: int = 7) -> SliceKey:
    key, data = slice_of(unit, session=session)
    arena.keep(key.session_hash, unit, [data], [key.checksum])
    return key


def copy(view: ArenaView, key: SliceKey, out: np.ndarray) -> bool:
    return arena_lives.copy(view, key, out)


def held(view: ArenaView, units: range, session: int = 7) -> list[int]:
    """The units that a reader finds, each compared byte by byte."""
    found = []
    for unit in units:
        key, data = slice_of(unit, session=session)
        out = np.zeros_like(data)
        if copy(view, key, out):
            assert np.array_equal(out, data)
            found.append(unit)
    return found


def reader_with_ram(root: Path) -> SessionReader:
    return SessionReader.open(root, SESSION, ram=RamTier(root, shm_dir=root / "shm"))


def tiers_of(reader: SessionReader, count: int) -> list[Tier]:
    snapshot = reader.snapshot()
    return [read_unit(reader, snapshot, unit, 0)[2] for unit in range(count)]


@pytest.mark.parametrize("encoding", ["model", "int8", "int4"])
def test_units_that_leave_the_hot_tail_are_read_from_memory_and_are_the_same(
    root: Path, shm: Path, encoding: str
) -> None:
    arena = make_arena(root, 4096 * KIB)
    writer = open_writer(root, arena=arena, encoding=encoding, hot_tail_bytes=16 * KIB)
    for index in range(60):
        unit, keys, _ = sample(index)
        finite = np.random.default_rng(index).normal(size=keys.shape).astype(np.float32)
        writer.append(unit, finite, finite[::-1], resume=b"")
        writer.publish()
    plain, cached = SessionReader.open(root, SESSION), reader_with_ram(root)
    snapshot = cached.snapshot()
    tiers = tiers_of(cached, 60)
    assert Tier.RAM in tiers
    assert Tier.DISK not in tiers
    for unit in range(60):
        for layer in range(SMALL.layer_count):
            keys, values, _ = read_unit(cached, snapshot, unit, layer)
            other_keys, other_values, _ = read_unit(plain, plain.snapshot(), unit, layer)
            assert keys.tobytes() == other_keys.tobytes()
            assert values.tobytes() == other_values.tobytes()
    writer.close()
    arena.close()


def test_a_session_that_ends_leaves_what_is_durable_in_memory(root: Path, shm: Path) -> None:
    arena = make_arena(root, 4096 * KIB)
    writer = open_writer(root, arena=arena)
    append(writer, 30)
    writer.flush()
    append(writer, 2)
    writer.close()
    reader = reader_with_ram(root)
    assert tiers_of(reader, 30) == [Tier.RAM] * 30
    assert all(unit_is(reader, reader.snapshot(), unit) for unit in range(30))
    assert arena.slice_count == 30 * SMALL.layer_count
    arena.close()


def test_at_half_the_memory_that_is_needed_every_byte_is_right_and_the_newest_stay(
    root: Path, shm: Path
) -> None:
    arena = make_arena(root, file_bytes(64 * KIB) + 200 * KIB)
    writer = open_writer(root, arena=arena)
    slot_count = arena.shape.fitting(200 * KIB)
    count = slot_count  # units of two layers each
    append(writer, count)
    writer.flush()
    reader = reader_with_ram(root)
    snapshot = reader.snapshot()
    assert all(unit_is(reader, snapshot, unit) for unit in range(count))
    tiers = tiers_of(reader, count)
    assert tiers[0] is Tier.DISK
    order = [Tier.DISK, Tier.RAM, Tier.HOT]
    assert tiers == sorted(tiers, key=order.index)
    assert set(tiers) == set(order)
    writer.close()
    arena.close()


def test_the_oldest_slices_leave_first(root: Path, shm: Path) -> None:
    arena = make_arena(root, 64 * KIB, 512)
    view = ArenaView(arena.path)
    count = arena.shape.slot_count
    for unit in range(count + 5):
        keep(arena, unit)
    assert arena.slice_count <= count
    found = held(view, range(count + 5))
    assert found == [unit for unit in found if unit >= 5]
    assert len(found) == arena.slice_count >= count - 5
    arena.close()


def test_a_deleted_session_leaves_memory(root: Path, shm: Path) -> None:
    arena = make_arena(root, 64 * KIB, 512)
    keep(arena, 1, session=7)
    keep(arena, 2, session=8)
    arena.forget(7)
    view = ArenaView(arena.path)
    assert held(view, range(3), session=7) == []
    assert held(view, range(3), session=8) == [2]
    arena.close()


def memory_bytes(shm: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in shm.iterdir())


def test_the_arena_and_hot_tails_stay_within_the_budget_at_every_moment(
    root: Path, shm: Path
) -> None:
    budget_bytes = 1024 * KIB
    arena = make_arena(root, budget_bytes)
    assert budget_bytes * 0.9 < memory_bytes(shm) <= budget_bytes
    for unit in range(arena.shape.slot_count):
        keep(arena, unit)
    view = ArenaView(arena.path)
    writer = open_writer(root, arena=arena, hot_tail_bytes=512 * KIB)
    assert memory_bytes(shm) <= budget_bytes
    assert arena.file_bytes == arena.path.stat().st_blocks * 512
    assert len(held(view, range(arena.shape.slot_count))) == arena.slice_count > 0
    append(writer, 100)
    assert memory_bytes(shm) <= budget_bytes
    writer.close()
    assert budget_bytes * 0.9 < memory_bytes(shm) <= budget_bytes
    arena.close()
    assert memory_bytes(shm) == 0


def test_hot_tails_whose_sizes_are_not_whole_pages_stay_within_the_budget(
    root: Path, shm: Path
) -> None:
    budget_bytes = 1024 * KIB
    arena = make_arena(root, budget_bytes, slot_bytes=64)
    writers = [
        SessionWriter.open(
            root,
            f"session-{number}",
            geometry=SMALL,
            limits=LIMITS,
            shm_dir=shm,
            hot_tail_bytes=64 * KIB + 1,
            arena=arena,
        )
        for number in range(3)
    ]
    assert budget_bytes * 0.99 < memory_bytes(shm) <= budget_bytes
    for writer in writers:
        writer.close()
    assert memory_bytes(shm) <= budget_bytes
    arena.close()


def test_memory_that_a_reader_in_the_middle_of_a_copy_took_anew_is_given_back(
    root: Path, shm: Path
) -> None:
    arena = make_arena(root, 1024 * KIB)
    view = ArenaView(arena.path)
    arena.claim(512 * KIB)
    assert arena.file_bytes == arena.path.stat().st_blocks * 512
    last = arena.shape.slot_count - 1
    start = last * arena.shape.stride_bytes
    view._slots[start : start + arena.shape.stride_bytes].sum()  # as one that looked before
    assert arena.path.stat().st_blocks * 512 > arena.file_bytes
    arena.settle()
    assert arena.path.stat().st_blocks * 512 == arena.file_bytes
    arena.release(512 * KIB)
    assert arena.path.stat().st_blocks * 512 == arena.file_bytes
    arena.close()


def test_a_slot_that_was_retired_is_not_touched(root: Path, shm: Path) -> None:
    arena = make_arena(root, 1024 * KIB, 4096)
    view = ArenaView(arena.path)
    keys = [keep(arena, unit) for unit in range(arena.shape.slot_count)]
    units, checksums = (
        np.array(words, np.uint64) for words in zip(*((k[1], k[3]) for k in keys), strict=True)
    )
    found = view.find(7, 0, units, checksums, np.full(len(keys), 512))
    assert (found.slots >= 0).all()
    arena.claim(768 * KIB)
    before = arena.path.stat().st_blocks
    out = np.zeros(512, np.uint8)
    for slot, generation in zip(*found, strict=True):
        view.copy(int(slot), generation, out)
    assert arena.path.stat().st_blocks == before
    arena.close()


def test_what_is_kept_survives_a_shrinking_by_what_it_is_and_not_by_where_it_lies(
    root: Path, shm: Path
) -> None:
    arena = make_arena(root, 64 * KIB, 512)
    view = ArenaView(arena.path)
    count = arena.shape.slot_count
    for unit in range(count):
        keep(arena, unit)
    arena.claim(32 * KIB)
    held_units = held(view, range(count))
    assert len(held_units) == arena.slice_count
    assert arena.slice_count >= arena.shape.fitting(30 * KIB) - 5
    newest = range(count - arena.slice_count // 9, count)
    assert set(newest) <= set(held_units)
    arena.close()


def test_a_slice_that_was_written_anew_takes_the_place_of_what_it_was(
    root: Path, shm: Path
) -> None:
    arena = make_arena(root, 64 * KIB, 512)
    view = ArenaView(arena.path)
    old, _ = slice_of(1)
    keep(arena, 1)
    data = np.full(300, 9, np.uint8)
    new = old._replace(checksum=xxhash.xxh3_64_intdigest(data.data))
    assert arena.take(new, data)
    assert arena.slice_count == 1
    assert held(view, range(3)) == []
    out = np.zeros_like(data)
    assert copy(view, new, out)
    assert np.array_equal(out, data)
    arena.close()


def test_bytes_that_are_not_those_of_their_checksum_are_not_taken(
    root: Path, shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arena = make_arena(root, 64 * KIB, 512)
    key, data = slice_of(1)
    wrong = data.copy()
    wrong[100] ^= 1
    assert not arena.take(key, wrong)
    arena.keep(key.session_hash, 1, [wrong], [key.checksum])
    assert arena.slice_count == 0
    assert "did not match its checksum" in caplog.text
    arena.close()


def test_a_hot_tail_that_the_budget_has_no_room_for_is_refused_and_claims_nothing(
    root: Path, shm: Path
) -> None:
    arena = make_arena(root, 256 * KIB)
    for _ in range(2):
        with pytest.raises(StoreFullError):
            open_writer(root, arena=arena, hot_tail_bytes=512 * KIB)
    writer = open_writer(root, arena=arena, hot_tail_bytes=64 * KIB)
    append(writer, 3)
    writer.close()
    assert arena.file_bytes == arena.shape.used_bytes(arena.shape.slot_count)
    arena.close()


class SmallSharedMemory(DiskIO):
    """Shared memory with little room."""

    def free_bytes(self, folder: Path) -> int:
        return 128 * KIB


class SmallMachine(DiskIO):
    """Shared memory that promises more than the machine has."""

    def free_memory_bytes(self) -> int:
        return 128 * KIB


@pytest.mark.parametrize("io", [SmallSharedMemory(), SmallMachine()])
def test_where_memory_is_small_it_takes_what_fits_and_says_so(
    root: Path, shm: Path, caplog: pytest.LogCaptureFixture, io: DiskIO
) -> None:
    arena = Arena.create(root, budget_bytes=2**30, slot_bytes=SLOT_BYTES, shm_dir=shm, io=io)
    assert "less room" in caplog.text
    assert 0 < arena.file_bytes <= 128 * KIB
    keep(arena, 1)
    assert held(ArenaView(arena.path), range(3)) == [1]
    arena.close()


def start_life(name: str, root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", arena_lives.__name__, name, str(root), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def race(root: Path, life: str) -> list[tuple[int, int]]:
    """Recycle slots at full speed under two readers; return what each accepted, and of it torn."""
    arena = make_arena(root, 8 * 70 * KIB, arena_lives.SLICE_BYTES)
    slices = [arena_lives.slice_of(unit) for unit in range(arena_lives.UNIT_COUNT)]
    readers = [start_life(life, root, str(arena.path)) for _ in range(2)]
    turn = 0
    while any(reader.poll() is None for reader in readers):
        key, data = slices[turn % len(slices)]
        arena.keep(key.session_hash, key.unit_index, [data], [key.checksum])
        turn += 1
    arena.close()
    results = []
    for reader in readers:
        assert reader.stdout is not None
        accepted, torn = map(int, reader.stdout.read().split())
        assert reader.returncode == 0
        results.append((accepted, torn))
    return results


@pytest.mark.parametrize("life", ["reader", "reader-rows"])
def test_readers_of_other_processes_accept_nothing_torn_while_slots_are_recycled(
    root: Path, shm: Path, life: str
) -> None:
    for accepted, torn in race(root, life):
        assert accepted > 0
        assert torn == 0


@pytest.mark.parametrize("life", ["careless", "careless-rows"])
def test_without_the_look_at_the_generation_something_torn_would_be_accepted(
    root: Path, shm: Path, life: str
) -> None:
    assert sum(torn for _, torn in race(root, life)) > 0


def test_a_reader_killed_while_it_copies_leaves_nothing_behind(root: Path, shm: Path) -> None:
    arena = make_arena(root, 8 * 70 * KIB, arena_lives.SLICE_BYTES)
    key, data = arena_lives.slice_of(0)
    arena.keep(key.session_hash, 0, [data], [key.checksum])
    before = arena.path.read_bytes()
    reader = start_life("stuck", root, str(arena.path))
    assert reader.stdout is not None
    assert reader.stdout.readline() == "copying\n"
    reader.send_signal(signal.SIGKILL)
    reader.wait()
    assert arena.path.read_bytes() == before
    for unit in range(arena_lives.UNIT_COUNT):  # every slot can be had again
        key, data = arena_lives.slice_of(unit)
        arena.keep(key.session_hash, unit, [data], [key.checksum])
    assert arena.slice_count == arena.shape.slot_count
    arena.close()


def test_an_owner_that_was_killed_is_read_until_it_is_cleaned_up_after_and_then_replaced(
    root: Path, shm: Path
) -> None:
    owner = start_life("owner", root)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    assert clean_stale_files(root, "ram", shm_dir=shm) == 0
    (path,) = shared_files(root, "ram", shm_dir=shm)
    tier = RamTier(root, shm_dir=shm, look_every_s=0)
    tier.refresh()
    (view,) = tier._current()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert held(view, range(3)) == [1]
    assert clean_stale_files(root, "ram", shm_dir=shm) == 1
    assert not path.exists()
    arena = make_arena(root)
    keep(arena, 2)
    (new_view,) = tier._current()
    assert held(new_view, range(3)) == [2]
    fd = view._fd
    del view
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    arena.close()
    tier.refresh()
    assert tier._current() == ()


def test_a_session_made_anew_under_a_name_never_reads_the_old_ones_bytes(
    root: Path, shm: Path
) -> None:
    arena = make_arena(root, 4096 * KIB)
    for salt in (1, 2):
        record = SessionRecord(session_id=SESSION, created_unix_s=0.0, unit_period_s=1.0)
        create_session(root, record)
        writer = open_writer(root, arena=arena)
        append(writer, 20, salt=salt)
        writer.flush()
        writer.close()
        if salt == 1:
            delete_session(root, SESSION)
    reader = reader_with_ram(root)
    snapshot = reader.snapshot()
    assert all(unit_is(reader, snapshot, unit, salt=2) for unit in range(20))
    assert tiers_of(reader, 20) == [Tier.RAM] * 20
    arena.close()


@pytest.mark.parametrize("encoding", ["model", "int8"])
@pytest.mark.parametrize("token_count", [None, 12])
def test_units_read_in_one_call_are_each_their_own_wherever_they_come_from(
    root: Path, shm: Path, encoding: str, token_count: int | None
) -> None:
    # None: units of different lengths; 12: as long as a slot, which are copied all at once.
    slot_bytes = Layout(SMALL, encoding).extent_bytes(12)
    arena = make_arena(root, 4096 * KIB, slot_bytes)
    writer = open_writer(root, arena=arena, encoding=encoding, hot_tail_bytes=64 * KIB)
    for index in range(60):
        unit, keys, values = sample(index, token_count=token_count)
        if encoding != "model":
            keys = np.random.default_rng(index).normal(size=keys.shape).astype(keys.dtype)
            values = keys[::-1]
        writer.append(unit, keys, values, resume=b"")
        writer.publish()
    writer.flush()
    for place in list(arena._slots.places)[::3]:
        arena._discard(place)  # what left memory since
    cached, plain = reader_with_ram(root), SessionReader.open(root, SESSION)
    snapshot = cached.snapshot()
    rng = np.random.default_rng(0)
    seen: set[Tier] = set()
    for layer in range(SMALL.layer_count):
        for count in (1, 7, 60):
            units = rng.choice(60, count, replace=False).tolist()
            keys, values, tiers = read_units(cached, snapshot, units, layer)
            same_keys, same_values, _ = read_units(plain, plain.snapshot(), units, layer)
            assert keys.tobytes() == same_keys.tobytes()
            assert values.tobytes() == same_values.tobytes()
            seen.update(tiers)
    assert seen == set(Tier)
    writer.close()
    arena.close()


def test_a_unit_that_another_epoch_wrote_is_not_taken_for_the_one_that_was_lost(
    root: Path, shm: Path
) -> None:
    arena = make_arena(root, 4096 * KIB)
    writer = open_writer(root, arena=arena)
    append(writer, 3)
    writer.flush()
    append(writer, 2)  # visible, and never durable
    reader = reader_with_ram(root)
    before = reader.snapshot()
    assert (before.unit_count, before.durable_unit_count) == (5, 3)
    kill(writer)
    later = open_writer(root, arena=arena, hot_tail_bytes=16 * KIB)
    append(later, 60, salt=9)
    later.flush()
    after = reader.snapshot()
    assert read_unit(reader, after, 4, 0)[2] is Tier.RAM
    assert unit_is(reader, after, 4, salt=9)
    try:  # the hot tail that the snapshot holds may have it still
        keys, _, tier = read_unit(reader, before, 4, 0)
    except (SnapshotExpiredError, ValueError):
        pass
    else:
        assert tier is Tier.HOT
        assert keys.tobytes() == sample(4)[1][0].tobytes()
    later.close()
    arena.close()


class _WritesDirectly(DiskIO):
    """A file system that takes direct writes; counts the files that are to have them."""

    def __init__(self) -> None:
        self.direct_count = 0

    def file_system(self, folder: Path) -> str:
        return "ext4"

    def set_direct(self, fd: int, *, direct: bool) -> None:
        self.direct_count += direct


@pytest.mark.parametrize(("encoding", "fits"), [("model", False), ("int8", True), ("int4", True)])
def test_what_no_slot_takes_is_told_once_a_push_and_written_through_the_page_cache(
    root: Path, shm: Path, caplog: pytest.LogCaptureFixture, encoding: Encoding, fits: bool
) -> None:
    slot_bytes = Layout(SMALL, "int8").extent_bytes(12)
    assert slot_bytes < SLOT_BYTES
    arena = Arena.create(
        root, budget_bytes=1024 * KIB, slot_bytes=slot_bytes, unit_tokens=12, shm_dir=shm
    )
    io = _WritesDirectly()
    writer = open_writer(root, arena=arena, encoding=encoding, io=io)
    told = [record for record in caplog.records if "keeps no full unit" in record.getMessage()]
    assert len(told) == (not fits)
    unit, keys, values = sample(0, token_count=12)
    keys = values = np.zeros_like(keys)
    writer.append(unit, keys, values, resume=b"")
    writer.flush()
    assert (io.direct_count > 0) == fits
    writer.close()
    assert (arena.slice_count > 0) == fits
    arena.close()


def test_a_unit_that_was_dropped_is_not_read_from_memory(root: Path, shm: Path) -> None:
    arena = make_arena(root, 8192 * KIB)
    budget = DiskBudget(session_bytes=400_000, on_full="drop_oldest")
    limits = replace(LIMITS, budget=budget)
    writer = open_writer(root, arena=arena, limits=limits, hot_tail_bytes=16 * KIB)
    append(writer, 20)
    writer.flush()
    reader = reader_with_ram(root)
    before = reader.snapshot()
    assert read_unit(reader, before, 0, 0)[2] is Tier.RAM
    append(writer, 200)
    writer.flush()
    after = reader.snapshot()
    assert after.first_unit > 0
    for snapshot in (before, after):
        with pytest.raises(UnitDroppedError):
            read_unit(reader, snapshot, 0, 0)
    writer.close()
    arena.close()


@given(st.tuples(*[st.integers(0, 2**64 - 1)] * 2), st.integers(0, 2**32), st.integers(0, 200))
def test_owner_and_readers_look_for_a_slice_at_the_same_place(
    words: tuple[int, int], unit: int, layer: int
) -> None:
    session, checksum = words
    units, checksums = np.array([unit], np.uint64), np.array([checksum], np.uint64)
    (hash_,) = key_hashes(session, layer, units, checksums).tolist()
    assert hash_ == SliceKey(session, unit, layer, checksum).hash()
