"""Thinning a session: its length stays, the budget holds, and what is left is what was stored."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.arena import Arena
from kvstore.budget import DiskBudget
from kvstore.diskio import DiskIO
from kvstore.diskuse import used_bytes
from kvstore.encoding import Encoding, Layout
from kvstore.errors import (
    BlockCorruptError,
    BudgetExceededError,
    SliceCorruptError,
    StoreFullError,
    UnitsThinnedError,
)
from kvstore.export import export_session
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.geometry import Tier
from kvstore.importing import import_session
from kvstore.mean_keys import mean_key
from kvstore.paths import segment_numbers, segment_path
from kvstore.quarantine import Quarantine
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.scan import read_page
from kvstore.session import create_session
from kvstore.stat import stat_session
from kvstore.verify import verify_store
from kvstore.writer import SessionWriter
from tests.kvstore.samples import SESSION, kill, read_unit
from tests.kvstore.test_archive import RECORD
from tests.kvstore.thinned import (
    BUDGET,
    BUDGET_BYTES,
    SCENE,
    THINNING,
    append_scenes,
    as_stored,
    check_all,
    is_part_of,
    limits_of,
    scene,
    thinning_writer,
)

FULL_COUNT = 56
"""Units that fit before anything is thinned."""


def folder_of(root: Path) -> Path:
    return root / "sessions" / SESSION


def generations(root: Path) -> list[int]:
    found = []
    for number in segment_numbers(folder_of(root)):
        path = segment_path(folder_of(root), number)
        with open(path, "rb") as file:
            header = SegmentHeader.unpack(read_page(file.fileno(), 0), path)
        if header is not None:  # just begun
            found.append(header.generation)
    return found


def thinned_session(root: Path, count: int = 120, **changes: object) -> None:
    writer = thinning_writer(root, **changes)
    append_scenes(writer, count)
    writer.flush()
    writer.close()


def test_a_session_that_thins_keeps_its_whole_length_within_its_budget(root: Path) -> None:
    writer = thinning_writer(root)
    for _ in range(25):
        append_scenes(writer, 8)
        writer.flush()
        assert used_bytes(folder_of(root)) <= BUDGET_BYTES * BUDGET.high_fraction
    snapshot = check_all(root, 200)
    assert snapshot.coarsened[:100].all()
    assert not snapshot.coarsened[-8:].any()
    # The oldest and thickest first: no generation is skipped, the older are not less thin.
    found = generations(root)
    assert found == sorted(found, reverse=True)
    assert max(found) - min(found[:-2]) <= 1
    writer.close()
    assert verify_store(root).damage == ()
    check_all(root, 200)


def test_a_new_writer_goes_on_behind_thinned_segments(root: Path) -> None:
    thinned_session(root)
    (folder_of(root) / "CTL").unlink()  # only the files say it
    writer = thinning_writer(root)
    assert writer.durable_unit_count == 120
    append_scenes(writer, 60)
    writer.flush()
    writer.close()
    check_all(root, 180)
    # The proof of what was acknowledged does not lie in what may be thinned.
    (folder_of(root) / "CTL").unlink()
    check_all(root, 180)
    segment_path(folder_of(root), 5).unlink()
    with pytest.raises(BlockCorruptError):
        SessionReader.open(root, SESSION)


@pytest.mark.parametrize("encoding", ["int8", "int4"])
def test_quantised_sessions_thin_too(root: Path, encoding: Encoding) -> None:
    small = limits_of(BUDGET_BYTES // 2)
    writer = thinning_writer(root, encoding=encoding, limits=small)
    count = 110 if encoding == "int8" else 130
    append_scenes(writer, count)
    writer.flush()
    writer.close()
    assert check_all(root, count).coarsened.sum() > 40
    assert verify_store(root).damage == ()


@pytest.mark.parametrize("element", ["bfloat16", "float16", "float64"])
def test_every_element_type_thins(root: Path, element: str) -> None:
    geometry = replace(SCENE, element=element)
    thinned_session(root, 200 if geometry.element_bytes < 8 else 60, geometry=geometry)
    assert check_all(root, 200 if geometry.element_bytes < 8 else 60).coarsened.any()


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 14), st.booleans(), st.integers(0, 60), st.integers(0, 20)),
        min_size=4,
        max_size=9,
    ),
    block_units=st.integers(1, 5),
    head_dim=st.sampled_from([3, 16]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_thinned_when_what_stays_is_what_was_stored(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, bool, int, int]],
    block_units: int,
    head_dim: int,
) -> None:
    root = tmp_path_factory.mktemp("store")
    geometry = replace(SCENE, head_dim=head_dim)
    limits = limits_of(
        max(16 * block_units * 64 * geometry.token_bytes * 2, 300_000),
        block_tokens=32 * block_units,
    )
    pins: list[tuple[float, float]] = []
    before = np.empty(0, np.int64)

    def opened() -> SessionWriter:
        return thinning_writer(root, limits=limits, geometry=geometry, pinned=lambda: pins)

    writer = opened()
    for count, restarts, pin_start, pin_span in steps:
        pins[:] = [(float(pin_start), float(pin_start + pin_span))] if pin_span else []
        with contextlib.suppress(StoreFullError):
            append_scenes(writer, count)
        counts = check_all(root, writer.visible_unit_count).token_counts
        old = counts[: len(before)]
        assert (old <= before).all()
        pinned = slice(pin_start, pin_start + pin_span)
        assert (old[pinned] == before[pinned]).all()
        if restarts:
            writer.close()
            writer = opened()
        before = counts[: writer.visible_unit_count]
        assert used_bytes(folder_of(root)) <= limits.budget.session_bytes
    writer.close()
    assert verify_store(root).damage == ()


def test_pinned_units_stay_whole_and_are_asked_for_anew(root: Path) -> None:
    pins: list[tuple[float, float]] = [(10.0, 20.0)]
    writer = thinning_writer(root, pinned=lambda: tuple(pins))
    append_scenes(writer, 120)
    coarsened = check_all(root, 120).coarsened
    assert not coarsened[10:20].any()
    assert coarsened[:9].all()  # unit 9 ends before the span, unit 20 begins where it stops
    assert coarsened[20:40].all()
    pins.clear()
    append_scenes(writer, 120)
    writer.flush()
    writer.close()
    assert check_all(root, 240).coarsened[10:20].all()


def test_when_all_is_pinned_the_push_is_refused_and_says_why(root: Path) -> None:
    writer = thinning_writer(root, pinned=lambda: [(0.0, 1e9)])
    with pytest.raises(BudgetExceededError, match="as thin as it gets"):
        append_scenes(writer, 200)
    count = writer.visible_unit_count
    assert not check_all(root, count).coarsened.any()
    writer.close()


def test_a_pin_stops_dropping_at_its_segment(root: Path) -> None:
    pins = [(30.0, 31.0)]
    drops = replace(THINNING, budget=replace(BUDGET, on_full="drop_oldest"))
    writer = thinning_writer(root, limits=drops, pinned=lambda: pins)
    with pytest.raises(BudgetExceededError, match="pinned"):
        append_scenes(writer, 300)
    reader = SessionReader.open(root, SESSION)
    first = reader.snapshot().first_unit
    assert 20 < first <= 30
    reader.close()
    pins.clear()
    append_scenes(writer, 100)
    writer.close()


def test_what_is_pinned_may_lie_in_a_damaged_segment_so_it_stays(root: Path) -> None:
    drops = replace(THINNING, budget=replace(BUDGET, on_full="drop_oldest"))
    writer = thinning_writer(root, limits=drops, pinned=lambda: [(1000.0, 1001.0)])
    append_scenes(writer, 40)
    with open(segment_path(folder_of(root), 0), "r+b") as file:
        os.pwrite(file.fileno(), b"\xff", 2 * PAGE_BYTES + 8)  # in the first unit table
    with pytest.raises(BudgetExceededError, match="pinned"):
        append_scenes(writer, 100)
    writer.close()


def test_a_pin_stops_ageing_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    monkeypatch.setattr("time.time", lambda: now)
    aged = replace(THINNING, budget=DiskBudget(), segment_bytes=64 * 1024, retain_s=20.0)
    pins = [(8.0, 9.0)]
    writer = thinning_writer(root, limits=aged, pinned=lambda: pins)
    for _ in range(60):
        append_scenes(writer, 1)
        now += 1
    reader = SessionReader.open(root, SESSION)
    assert 4 <= reader.snapshot().first_unit <= 8
    pins.clear()
    for _ in range(30):
        append_scenes(writer, 1)
        now += 1
    assert reader.snapshot().first_unit > 40
    reader.close()
    writer.close()


def test_what_the_next_unit_sees_is_never_thinned(root: Path) -> None:
    kept = limits_of(BUDGET_BYTES, keep_tokens=20 * 32)
    writer = thinning_writer(root, limits=kept)
    for _ in range(30):
        append_scenes(writer, 4)
        writer.flush()
        reader = SessionReader.open(root, SESSION)
        snapshot = reader.snapshot()
        assert not snapshot.coarsened[-20:].any()
        reader.close()
    assert snapshot.coarsened.any()
    writer.close()


def test_at_its_least_a_session_refuses_and_loses_nothing(root: Path) -> None:
    writer = thinning_writer(root)
    with pytest.raises(BudgetExceededError, match="as thin as it gets"):
        append_scenes(writer, 1000)
    count = writer.visible_unit_count
    assert count > 4 * FULL_COUNT
    snapshot = check_all(root, count)
    assert np.bincount(snapshot.token_counts[:200])[1] > 100
    writer.close()


def test_without_room_beside_the_old_one_it_refuses_and_says_so(root: Path) -> None:
    no_reserve = replace(BUDGET, high_fraction=1.0, low_fraction=1.0)
    writer = thinning_writer(root, limits=replace(THINNING, budget=no_reserve))
    with pytest.raises(BudgetExceededError, match="thinner copy"):
        append_scenes(writer, 200)
    assert check_all(root, writer.visible_unit_count).token_counts.mean() > 16
    assert not list(folder_of(root).glob("*.thin"))
    writer.close()


class _SmallDisk(DiskIO):
    """A disk of so many bytes, under the folder's own use."""

    def __init__(self, folder: Path, total_bytes: int) -> None:
        self._folder = folder
        self._total_bytes = total_bytes

    def free_bytes(self, folder: Path) -> int:
        return max(self._total_bytes - used_bytes(self._folder), 0)


def test_a_full_disk_thins_into_what_is_left_free_for_it(root: Path) -> None:
    disk = _SmallDisk(folder_of(root), 2 << 20)
    limits = replace(
        THINNING,
        budget=DiskBudget(on_full="thin"),
        min_free_bytes=200_000,
        segment_bytes=64 * 1024,
    )
    writer = thinning_writer(root, limits=limits, io=disk)
    append_scenes(writer, 150)
    assert disk.free_bytes(root) >= 200_000 - 8192
    assert check_all(root, 150).coarsened.any()
    writer.close()


def test_mean_keys_are_those_of_the_unit_as_it_was(root: Path) -> None:
    """Through several generations, a restart, and quantised bytes."""
    limits = limits_of(BUDGET_BYTES // 2)
    writer = thinning_writer(root, encoding="int8", limits=limits)
    append_scenes(writer, 100)
    writer.flush()
    writer.close()
    writer = thinning_writer(root, encoding="int8", limits=limits)
    append_scenes(writer, 32)
    writer.flush()
    writer.close()
    assert max(generations(root)) >= 2
    layout = Layout(SCENE, "int8")
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    rows = reader.mean_keys(snapshot, range(132))
    assert sorted(rows) == np.flatnonzero(snapshot.coarsened).tolist()
    for index, row in rows.items():
        keys, _ = as_stored(layout, *scene(index)[1:])
        assert [mean_key(SCENE, each).tobytes() for each in keys] == [r.tobytes() for r in row]
    reader.close()


@pytest.mark.parametrize("name", [SESSION, "cam-2"])
def test_an_archive_of_a_thinned_session_is_the_session(root: Path, name: str) -> None:
    create_session(root, RECORD)
    thinned_session(root)
    archive = io.BytesIO()
    export_session(root, SESSION, archive)
    archive.seek(0)
    other = root / "other"
    import_session(other, archive, session_id=name)
    reader = SessionReader.open(other, name)
    mine = SessionReader.open(root, SESSION)
    snapshot, before = reader.snapshot(), mine.snapshot()
    assert snapshot.coarsened.tolist() == before.coarsened.tolist()
    for index in range(120):
        assert is_part_of(reader, snapshot, index)
    rows, wanted = (r.mean_keys(s, range(120)) for r, s in ((reader, snapshot), (mine, before)))
    assert {i: row.tobytes() for i, row in rows.items()} == {
        i: row.tobytes() for i, row in wanted.items()
    }
    reader.close()
    mine.close()
    assert verify_store(other).damage == ()


def test_stat_tells_what_was_thinned(root: Path) -> None:
    thinned_session(root)
    stat = stat_session(root, SESSION)
    snapshot = check_all(root, 120)
    assert stat.thinned_unit_count == snapshot.coarsened.sum() > 0
    assert stat.thinnest_generation == max(generations(root)) > 0
    assert stat.token_count == snapshot.token_counts.sum()


def test_damage_in_a_thinned_segment_is_told_and_costs_its_unit(root: Path) -> None:
    thinned_session(root)
    reader = SessionReader.open(root, SESSION, quarantine=Quarantine(root, SESSION))
    snapshot = reader.snapshot()
    place = reader.places[2]
    path = segment_path(folder_of(root), place.segment_number)
    with open(path, "r+b") as file:
        offset = place.offset + place.header.layer_offset(place.layout, 1)
        byte = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)
    first = place.header.first_unit
    for _ in range(2):  # the second time from what is remembered
        with pytest.raises(SliceCorruptError):
            read_unit(reader, snapshot, first, 1)
    assert is_part_of(reader, snapshot, first + 1)
    reader.close()
    (damage,) = verify_store(root).damage
    assert (damage.unit_index, damage.layer_index) == (first, 1)
    # It is left as it is, with what was damaged before among it.
    writer = thinning_writer(root)
    append_scenes(writer, 40)
    writer.close()
    (damage,) = verify_store(root).damage
    assert (damage.unit_index, damage.layer_index) == (first, 1)


@pytest.mark.parametrize("part", ["mean keys", "header"])
def test_damage_in_what_tells_units_apart_is_not_overlooked(root: Path, part: str) -> None:
    thinned_session(root)
    reader = SessionReader.open(root, SESSION)
    place, snapshot = reader.places[0], reader.snapshot()
    header = place.header
    offset = place.offset + PAGE_BYTES + header.table_bytes + header.thumbnail_bytes
    with open(segment_path(folder_of(root), place.segment_number), "r+b") as file:
        os.pwrite(file.fileno(), b"\xff", offset if part == "mean keys" else place.offset + 40)
    if part == "mean keys":
        with pytest.raises(BlockCorruptError):
            reader.mean_keys(snapshot, [0])
    else:
        with pytest.raises(BlockCorruptError):
            SessionReader.open(root, SESSION)
    reader.close()
    assert len(verify_store(root).damage) >= 1


def test_slices_kept_in_memory_are_not_taken_for_thinned_ones(root: Path) -> None:
    shm = root / "shm"
    shm.mkdir()
    arena = Arena.create(root, budget_bytes=16 << 20, slot_bytes=32 * 1024, shm_dir=shm)
    writer = thinning_writer(root, arena=arena)
    append_scenes(writer, 50)
    old = SessionReader.open(root, SESSION, ram=RamTier(root, shm_dir=shm))
    whole = old.snapshot()
    assert read_unit(old, whole, 0, 0)[2] == Tier.RAM
    append_scenes(writer, 60)
    fresh = SessionReader.open(root, SESSION, ram=RamTier(root, shm_dir=shm))
    snapshot = fresh.snapshot()
    assert snapshot.coarsened[0]
    assert read_unit(fresh, snapshot, 0, 0)[2] == Tier.DISK
    for index in range(110):
        assert is_part_of(fresh, snapshot, index)
    # The old snapshot is whole as long as its reader has not heard of it.
    assert is_part_of(old, whole, 0)
    old.snapshot()
    with pytest.raises(UnitsThinnedError):
        read_unit(old, whole, 0, 0)
    for each in (old, fresh):
        each.close()
    writer.close()
    arena.close()


def test_units_in_the_hot_tail_that_were_thinned_are_read_as_thinned(root: Path) -> None:
    writer = thinning_writer(root, hot_tail_bytes=16 << 20)
    append_scenes(writer, 120)
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert snapshot.hot_tail is not None
    assert snapshot.hot_tail.still_holds(0)
    assert snapshot.coarsened[0]
    assert read_unit(reader, snapshot, 0, 0)[2] == Tier.DISK
    for index in range(120):
        assert is_part_of(reader, snapshot, index)
    reader.close()
    writer.close()


def test_a_fenced_writer_renames_nothing(root: Path) -> None:
    owned = True
    writer = thinning_writer(root, may_commit=lambda: owned)
    append_scenes(writer, FULL_COUNT)

    def asked() -> Sequence[tuple[float, float]]:
        nonlocal owned
        owned = False  # the last moment at which this is asked before a segment is written
        return ()

    writer._log._freeing._pinned = asked
    with pytest.raises(Exception, match="may not write"):
        append_scenes(writer, 20)
    assert max(generations(root)) == 0
    assert len(list(folder_of(root).glob("*.thin"))) == 1
    kill(writer)
    again = thinning_writer(root)
    assert not list(folder_of(root).glob("*.thin"))
    append_scenes(again, 60)
    again.close()
    check_all(root, again.durable_unit_count)


def test_the_old_segments_space_is_free_at_the_next_look(root: Path) -> None:
    writer = thinning_writer(root)
    append_scenes(writer, 40)
    writer.flush()
    reader = SessionReader.open(root, SESSION)
    before = reader.snapshot()
    for index in range(40):
        read_unit(reader, before, index, 0)
    append_scenes(writer, 60)

    def held_open() -> int:
        links = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        return sum(link.startswith(str(root)) and "kvs (deleted)" in link for link in links)

    assert held_open() > 0
    reader.snapshot()
    assert held_open() == 0
    reader.close()
    writer.close()


def test_headers_of_an_epoch_keep_saying_where_it_began(root: Path) -> None:
    for _ in range(6):
        writer = thinning_writer(root)
        append_scenes(writer, 20)
        writer.close()
    epochs, blocks = [], []
    for number in segment_numbers(folder_of(root)):
        path = segment_path(folder_of(root), number)
        with open(path, "rb") as file:
            segment = SegmentHeader.unpack(read_page(file.fileno(), 0), path)
            block = BlockHeader.unpack(read_page(file.fileno(), PAGE_BYTES), path)
        assert segment is not None
        assert block is not None
        epochs.append(segment.epoch)
        blocks.append(block.epoch)
    assert epochs == blocks == sorted(epochs)
    assert set(epochs) == set(range(1, 7))
    assert max(generations(root)) > 0


def test_a_late_block_before_a_thinned_segment_is_void(root: Path) -> None:
    """The thinned segment's header says where its epoch began, to whoever walks the log."""
    writer = thinning_writer(root)
    append_scenes(writer, 8)
    writer.flush()
    writer.close()
    writer = thinning_writer(root, pinned=lambda: [(0.0, 8.0)])
    first = writer.durable_unit_count
    append_scenes(writer, 100)
    writer.flush()
    writer.close()
    numbers = segment_numbers(folder_of(root))
    late_number = next(n for n, found in zip(numbers, generations(root), strict=True) if found) - 1
    paths = [segment_path(folder_of(root), late_number + step) for step in (0, 1)]
    with open(paths[1], "rb") as file:
        page = read_page(file.fileno(), PAGE_BYTES)
        rest = os.pread(file.fileno(), 1 << 20, 2 * PAGE_BYTES)
    header = BlockHeader.unpack(page, paths[1])
    assert header is not None
    assert (header.epoch, header.first_unit) == (2, first)
    with open(paths[0], "ab") as file:  # as a writer of the first epoch that was paused
        file.write(replace(header, epoch=1, generation=0).pack() + rest)
    check_all(root, first + 100)
    assert verify_store(root).damage == ()
    (folder_of(root) / "CTL").unlink()
    check_all(root, first + 100)


def test_a_stored_slice_is_of_the_generation_that_the_reader_met_last(root: Path) -> None:
    writer = thinning_writer(root)
    append_scenes(writer, 24)
    reader = SessionReader.open(root, SESSION)
    before = reader.snapshot()
    assert not before.coarsened[0]
    append_scenes(writer, 140)
    reader._files.forget(0)  # as when others were opened since: what is opened now is thinner
    for snapshot in (before, reader.snapshot()):
        read = reader.stored_slice(snapshot, 0, 1)
        assert read is not None
        data, checksum = read
        assert xxhash.xxh3_64_intdigest(data.data) == checksum
        now = reader.snapshot()
        assert now.coarsened[0]
        assert len(data) == Layout(SCENE).extent_bytes(int(now.token_counts[0]))
    reader.close()
    writer.close()
