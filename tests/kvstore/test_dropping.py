"""Dropping the oldest: the budget holds, indices stay, and gone is told from lost."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstore.budget import DiskBudget
from kvstore.diskio import DiskIO
from kvstore.diskuse import used_bytes
from kvstore.dropping import remove_below
from kvstore.errors import (
    BlockCorruptError,
    BudgetExceededError,
    StoreFullError,
    UnitDroppedError,
)
from kvstore.floor import FLOOR_NAME, ORIGIN, Floor, clean_floor, read_floor, write_floor
from kvstore.glance import glance
from kvstore.paths import segment_numbers, segment_path, session_hash
from kvstore.reader import SessionReader
from kvstore.verify import verify_store
from tests.kvstore.crash_lives import PLAIN_LIMITS, PromiseBrokenError, faulty_io, live_and_die
from tests.kvstore.samples import (
    LIMITS,
    SESSION,
    append,
    kill,
    open_writer,
    read_unit,
    sample,
    unit_is,
)
from tests.kvstore.simulated_disk import ProcessKilled, SimulatedDisk, SimulatedIO

_BUDGET_BYTES = 600 * 1024
_BUDGET = DiskBudget(session_bytes=_BUDGET_BYTES, on_full="drop_oldest")
_DROPPING = replace(LIMITS, budget=_BUDGET, preallocate_bytes=4096)


def folder_of(root: Path) -> Path:
    return root / "sessions" / SESSION


def floor_of(root: Path) -> Floor:
    return read_floor(folder_of(root), SESSION, session_hash(SESSION))


def holds(root: Path, unit_count: int) -> int:
    """Check every unit that is left, with a fresh reader; return the first of them."""
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert snapshot.unit_count == unit_count
    for index in range(snapshot.first_unit, unit_count):
        assert unit_is(reader, snapshot, index)
    reader.close()
    return snapshot.first_unit


def test_a_session_that_drops_goes_on_forever_within_its_budget(root: Path) -> None:
    writer = open_writer(root, limits=_DROPPING)
    first_units = []
    for _ in range(40):
        append(writer, 10)
        writer.flush()
        assert used_bytes(folder_of(root)) <= _BUDGET_BYTES * _BUDGET.high_fraction
        first_units.append(holds(root, writer.visible_unit_count))
    assert first_units == sorted(first_units)
    assert first_units[0] == 0
    assert first_units[-1] > 200
    # Not a file for every one: between two watermarks.
    assert used_bytes(folder_of(root)) > 0.5 * _BUDGET_BYTES
    writer.close()
    assert holds(root, 400) == first_units[-1]
    assert verify_store(root).damage == ()


def test_units_keep_their_indices_and_a_new_writer_goes_on_behind_them(root: Path) -> None:
    writer = open_writer(root, limits=_DROPPING)
    append(writer, 200)
    writer.close()
    (folder_of(root) / "CTL").unlink()  # only the files say it
    writer = open_writer(root, limits=_DROPPING)
    assert writer.recovery.first_unit == floor_of(root).first_unit > 50
    assert writer.durable_unit_count > 150
    append(writer, 300 - writer.visible_unit_count)
    writer.close()
    seen = glance(root, SESSION)
    assert seen is not None
    assert holds(root, seen.durable_unit_count) == seen.first_unit > 150


def test_nothing_is_dropped_that_the_next_unit_sees(root: Path) -> None:
    kept = replace(_DROPPING, keep_tokens=200)
    writer = open_writer(root, limits=kept)
    for _ in range(30):
        append(writer, 5)
        writer.flush()
        first = floor_of(root).first_unit
        left = sum(
            sample(index)[0].token_count for index in range(first, writer.durable_unit_count)
        )
        assert first == 0 or left >= 200
    assert floor_of(root).first_unit > 0
    writer.close()
    writer = open_writer(root, limits=replace(_DROPPING, keep_tokens=10**9))
    with pytest.raises(BudgetExceededError):
        append(writer, 1000)
    writer.close()


def test_the_last_segment_stays_whatever_the_budget(root: Path) -> None:
    tiny = replace(_DROPPING, budget=replace(_BUDGET, session_bytes=20_000))
    writer = open_writer(root, limits=tiny)
    with pytest.raises(BudgetExceededError):
        append(writer, 100)
    writer.close()


@pytest.mark.parametrize(("budget_bytes", "keep_tokens"), [(60_000, 0), (120_000, 200)])
@pytest.mark.parametrize("index_bytes", [0, 300 * 1024])
def test_a_budget_of_which_nothing_may_go_says_why_and_which_would_do(
    root: Path, budget_bytes: int, keep_tokens: int, index_bytes: int
) -> None:
    first = append_under(root, budget_bytes + index_bytes, keep_tokens, index_bytes)
    assert first is not None
    named = re.search(
        r"may go: .* take (\d+) bytes, .* (\d+); session_budget_bytes must be some (\d+)",
        str(first),
    )
    assert named is not None
    log_bytes, other_bytes, least_bytes = map(int, named.groups())
    assert log_bytes + other_bytes == used_bytes(folder_of(root))
    assert other_bytes >= index_bytes
    assert append_under(root, least_bytes, keep_tokens, index_bytes) is None
    assert floor_of(root).first_unit > 100
    assert least_bytes < 5 * (budget_bytes + index_bytes)  # one that is of use


def append_under(
    root: Path, budget_bytes: int, keep_tokens: int, index_bytes: int
) -> BudgetExceededError | None:
    """Appends 300 units; returns what refused them. A file stands for the key index."""
    budget = replace(_BUDGET, session_bytes=budget_bytes)
    limits = replace(_DROPPING, budget=budget, keep_tokens=keep_tokens)
    folder_of(root).mkdir(parents=True, exist_ok=True)
    (folder_of(root) / "index").write_bytes(bytes(index_bytes))
    writer = open_writer(root, limits=limits)
    try:
        append(writer, 300)
    except BudgetExceededError as error:
        return error
    finally:
        writer.close()
    return None


def test_a_reader_open_across_drops_gets_the_bytes_or_is_told(root: Path) -> None:
    writer = open_writer(root, limits=_DROPPING)
    append(writer, 40)
    writer.flush()
    reader = SessionReader.open(root, SESSION)
    before = reader.snapshot()
    assert before.first_unit == 0
    read_unit(reader, before, 0, 0)  # its segment is open now
    told = served = 0
    for _ in range(20):
        append(writer, 10)
        reader.snapshot()  # as other questions take one, while this one still reads
        for index in range(before.unit_count):
            try:
                assert unit_is(reader, before, index)
                served += 1
            except UnitDroppedError as error:
                told += error.unit_index == index < error.first_unit
    assert served
    assert told
    after = reader.snapshot()
    assert after.first_unit == floor_of(root).first_unit
    with pytest.raises(UnitDroppedError):
        read_unit(reader, after, after.first_unit - 1, 0)
    for call in (reader.cells, reader.thumbnail):
        with pytest.raises(UnitDroppedError):
            call(after, 0)
    assert unit_is(reader, after, after.first_unit)
    # What it knew of dropped units stays; a reader that comes now knows that they were.
    fresh = SessionReader.open(root, SESSION)
    snapshot = fresh.snapshot()
    assert snapshot.unit_count == after.unit_count
    assert snapshot.first_unit == after.first_unit
    assert np.isneginf(snapshot.last_pts_s[: snapshot.first_unit]).all()
    assert not snapshot.token_counts[: snapshot.first_unit].any()
    assert (np.diff(snapshot.last_pts_s[snapshot.first_unit :]) > 0).all()
    reader.close()
    fresh.close()
    writer.close()


def test_a_reader_lets_go_of_dropped_files_so_that_their_space_is_free(root: Path) -> None:
    writer = open_writer(root, limits=_DROPPING)
    append(writer, 60)
    writer.flush()
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    for index in range(snapshot.unit_count):
        unit_is(reader, snapshot, index)
    append(writer, 300)
    reader.snapshot()
    descriptors = Path("/proc/self/fd")
    open_files = [os.readlink(path) for path in descriptors.iterdir() if path.is_symlink()]
    of_session = [name for name in open_files if str(folder_of(root)) in name]
    assert of_session
    assert not [name for name in of_session if name.endswith("(deleted)")]
    reader.close()
    writer.close()


def test_a_snapshot_cut_below_the_floor_is_empty_and_says_so(root: Path) -> None:
    writer = open_writer(root, limits=_DROPPING)
    append(writer, 300)
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot().cut(5)
    assert snapshot.first_unit == snapshot.unit_count == 5
    reader.close()
    writer.close()


def dropped_store(root: Path) -> Floor:
    writer = open_writer(root, limits=_DROPPING)
    append(writer, 200)
    writer.close()
    floor = floor_of(root)
    assert floor.first_segment > 3
    return floor


@pytest.mark.parametrize("with_control", [True, False])
def test_a_segment_that_is_missing_by_accident_is_damage(root: Path, with_control: bool) -> None:
    floor = dropped_store(root)
    segment_path(folder_of(root), floor.first_segment).unlink()
    if not with_control:
        (folder_of(root) / "CTL").unlink()
    with pytest.raises(BlockCorruptError):
        SessionReader.open(root, SESSION)
    with pytest.raises(BlockCorruptError):
        open_writer(root, limits=_DROPPING)
    assert verify_store(root).damage


@pytest.mark.parametrize("with_control", [True, False])
@pytest.mark.parametrize("how", ["gone", "flipped", "short", "foreign"])
def test_a_lost_record_of_what_was_dropped_is_damage(
    root: Path, how: str, with_control: bool
) -> None:
    dropped_store(root)
    path = folder_of(root) / FLOOR_NAME
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "short":
        path.write_bytes(data[:-1])
    elif how == "foreign":
        write_floor(folder_of(root), session_hash("another"), floor_of(root), DiskIO())
    else:
        data[20] ^= 1
        path.write_bytes(data)
    if not with_control:
        (folder_of(root) / "CTL").unlink()
    with pytest.raises(BlockCorruptError):
        SessionReader.open(root, SESSION)
    with pytest.raises(BlockCorruptError):
        open_writer(root, limits=_DROPPING)
    assert verify_store(root).damage


def test_every_flipped_bit_of_the_record_is_found(root: Path) -> None:
    dropped_store(root)
    path = folder_of(root) / FLOOR_NAME
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(BlockCorruptError):
            floor_of(root)


def test_files_that_a_crash_left_below_the_floor_go_at_the_next_recovery(
    root: Path, tmp_path: Path
) -> None:
    writer = open_writer(root, limits=_DROPPING)
    append(writer, 30)
    writer.flush()
    copies = tmp_path / "copies"
    copies.mkdir()
    for number in segment_numbers(folder_of(root)):
        shutil.copy(segment_path(folder_of(root), number), copies)
    append(writer, 170)
    writer.close()
    floor = floor_of(root)
    for path in copies.iterdir():
        if not (folder_of(root) / path.name).exists():
            shutil.copy(path, folder_of(root))
    (folder_of(root) / "FLOOR.new").write_bytes(b"half")
    assert segment_numbers(folder_of(root))[0] < floor.first_segment
    # They are not there for anybody.
    unit_count = writer.durable_unit_count
    assert holds(root, unit_count) == floor.first_unit
    assert verify_store(root).damage == ()
    open_writer(root, limits=_DROPPING).close()
    assert segment_numbers(folder_of(root))[0] == floor.first_segment
    assert not (folder_of(root) / "FLOOR.new").exists()
    assert holds(root, unit_count) == floor.first_unit


def drop_and_die(root: Path, disk: SimulatedDisk, killed_at: int) -> int | None:
    """Fill a session until the next unit makes it drop, and die at that many calls on from there.

    Returns what was acknowledged before; None when the drop needs fewer calls.
    """
    writer = open_writer(root, limits=_DROPPING, io=SimulatedIO(disk))
    before = root / "before"
    while floor_of(root) == ORIGIN:
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(folder_of(root), before)
        acknowledged = writer.durable_unit_count
        append(writer, 1)
        writer.flush()
    kill(writer)
    shutil.rmtree(folder_of(root))
    shutil.copytree(before, folder_of(root))
    io = SimulatedIO(disk)
    writer = open_writer(root, limits=_DROPPING, io=io)
    disk.changes = []
    io.call_count, io.killed_at = 0, killed_at
    try:
        append(writer, 1)
        writer.flush()
    except ProcessKilled:
        return acknowledged
    finally:
        kill(writer)
    return None


@pytest.mark.parametrize("power", [True, False])
def test_a_death_at_any_call_of_a_drop_leaves_it_done_or_not_begun(root: Path, power: bool) -> None:
    met = set()
    for killed_at in range(1, 60):
        shutil.rmtree(root / "sessions", ignore_errors=True)
        disk = SimulatedDisk(random.Random(killed_at))
        acknowledged = drop_and_die(root, disk, killed_at)
        if acknowledged is None:
            break
        if power:
            disk.cut_power()
        writer = open_writer(root, limits=_DROPPING)
        assert writer.durable_unit_count >= acknowledged
        unit_count = writer.durable_unit_count
        writer.close()
        first_unit = holds(root, unit_count)
        met.add(first_unit > 0)
        assert segment_numbers(folder_of(root))[0] == floor_of(root).first_segment
        assert verify_store(root).damage == ()
    else:
        pytest.fail("the drop takes more calls than were tried")
    assert met == {True, False}


_LIVES = replace(PLAIN_LIMITS, budget=replace(_BUDGET, session_bytes=200 * 1024))


def test_lives_that_drop_lose_nothing_else() -> None:
    tally = live_and_die(session_count=40, lives_each=8, limits=_LIVES)
    assert tally.dropped > 300
    assert tally.torn_tails > 10
    assert tally.failed_writers > 10


@pytest.mark.slow
def test_thousands_of_lives_that_drop_lose_nothing_else() -> None:
    live_and_die(session_count=800, lives_each=8, first_seed=20_000, limits=_LIVES)


def _removes_first(
    folder: Path, session_hash: int, floor: Floor, io: SimulatedIO, announce: object
) -> None:
    remove_below(folder, floor, io)
    write_floor(folder, session_hash, floor, io)
    announce(floor.first_unit)  # type: ignore[operator]


def _does_not_wait_for_the_record(
    folder: Path, session_hash: int, floor: Floor, io: SimulatedIO
) -> None:
    aside = folder / "FLOOR.new"
    clean_floor(folder, io)
    write_floor(folder, session_hash, floor, _NoFolderSync(io))  # type: ignore[arg-type]
    assert not aside.exists()


class _NoFolderSync:
    """The calls of another, without the sync that makes a new name durable."""

    def __init__(self, io: SimulatedIO) -> None:
        self._io = io

    def __getattr__(self, name: str) -> object:
        return getattr(self._io, name)

    def fsync_folder(self, folder: Path) -> None:
        """Leaves it out."""


@pytest.mark.parametrize(
    ("where", "mutant"),
    [
        ("kvstore.freeing.drop_below", _removes_first),
        ("kvstore.dropping.write_floor", _does_not_wait_for_the_record),
    ],
)
def test_a_store_that_removes_before_the_record_is_durable_is_caught(
    where: str, mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, mutant)
    with pytest.raises(PromiseBrokenError):
        live_and_die(session_count=300, lives_each=8, make_io=faulty_io, limits=_LIVES)


class _FullAtTheRecord(DiskIO):
    """A disk that is full whenever the record of what was dropped is written, while it is told."""

    def __init__(self) -> None:
        self.full = True

    def create(self, path: Path) -> int:
        if self.full and path.name.startswith("FLOOR"):
            raise OSError(errno.ENOSPC, "no space left", str(path))
        return super().create(path)


def test_what_could_not_be_dropped_is_still_there_and_may_be_pinned(root: Path) -> None:
    io = _FullAtTheRecord()
    pins: list[tuple[float, float]] = []
    writer = open_writer(root, limits=_DROPPING, io=io, pinned=lambda: pins)
    refused_count = 0
    for _ in range(2000):
        try:
            append(writer, 1)
        except StoreFullError:
            refused_count += 1
            if refused_count == 3:
                break
    assert refused_count == 3
    reader = SessionReader.open(root, SESSION)
    assert reader.snapshot().first_unit == 0
    pins.append((-1.0, 1.0))
    io.full = False
    with pytest.raises(StoreFullError, match="pinned"):
        append(writer, 1)
    assert unit_is(reader, reader.snapshot(), 0)
    pins.clear()
    append(writer, 50)
    assert reader.snapshot().first_unit > 0
    reader.close()
    writer.close()
    assert verify_store(root).damage == ()
