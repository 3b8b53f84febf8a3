"""The arena's owner: it hears what questions use, brings in what they read, and finds damage."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import kvstore.arenakeeper
from kvstore.arena import Arena
from kvstore.arenakeeper import ArenaKeeper
from kvstore.arenalayout import SliceKey
from kvstore.encoding import Layout
from kvstore.eviction import Place
from kvstore.geometry import Tier
from kvstore.guarded import GuardedReader
from kvstore.paths import INDEX_NAME, session_folder, session_hash
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.readpool import Reading
from kvstore.readtrace import ReadTrace
from kvstore.trimming import drop_front, stored_segments
from kvstore.writer import SessionWriter
from tests.kvstore.samples import (
    LIMITS,
    SESSION,
    SMALL,
    append,
    open_writer,
    read_unit,
    read_units,
    sample,
    unit_is,
)
from tests.kvstore.thinned import GRID, SCENE, append_scenes, is_part_of, thinning_writer

SLOT_BYTES = Layout(SMALL).extent_bytes(12)
KIB = 1024
UNITS = 20


class World:
    """A store of one session, an arena that does not know it yet, and a reader that is heard."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shm = root / "shm"
        self.shm.mkdir()
        writer = open_writer(root)
        append(writer, UNITS)
        writer.flush()
        writer.close()
        self.now_s = 0.0
        self.arena = self.new_arena()
        self.trace = ReadTrace.create(root, shm_dir=self.shm)
        self.keeper = self.new_keeper()
        ram = RamTier(root, shm_dir=self.shm, look_every_s=0)
        self.reader = SessionReader.open(root, SESSION, ram=ram)

    def new_arena(self) -> Arena:
        return Arena.create(
            self.root, budget_bytes=4096 * KIB, slot_bytes=SLOT_BYTES, shm_dir=self.shm
        )

    def new_keeper(self) -> ArenaKeeper:
        return ArenaKeeper(self.arena, self.root, shm_dir=self.shm, clock=lambda: self.now_s)

    def ask(self, units: list[int]) -> list[Tier]:
        """Read units in all layers, as one question."""
        reader = GuardedReader(self.reader, None, Reading(), self.trace.question(SESSION))
        snapshot = self.reader.snapshot()
        count = int(snapshot.token_counts[units].sum())
        tiers: list[Tier] = []
        for layer in range(SMALL.layer_count):
            keys = np.zeros((count, SMALL.kv_head_count, SMALL.head_dim), SMALL.storage_dtype)
            tiers += reader.read(snapshot, layer, units, keys, np.zeros_like(keys))
        return tiers

    def close(self) -> None:
        self.reader.close()
        self.keeper.close()
        self.trace.close()
        self.arena.close()


@pytest.fixture
def world(root: Path) -> World:
    return World(root)


def test_what_a_question_read_from_the_disk_is_in_memory_for_the_next(world: World) -> None:
    assert set(world.ask([3, 5])) == {Tier.DISK}
    world.keeper.look()
    assert world.keeper.fill(1 << 30) > 0
    assert set(world.ask([3, 5])) == {Tier.RAM}
    snapshot = world.reader.snapshot()
    assert all(unit_is(world.reader, snapshot, unit) for unit in (3, 5))
    assert world.ask([4])[0] is Tier.DISK
    world.close()


def test_a_turn_reads_no_more_than_it_may_and_the_next_goes_on(world: World) -> None:
    world.ask(list(range(UNITS)))
    world.keeper.look()
    turns = 0
    while read_bytes := world.keeper.fill(2 * SLOT_BYTES):
        assert read_bytes <= 3 * SLOT_BYTES
        turns += 1
    assert turns > 3
    assert set(world.ask(list(range(UNITS)))) == {Tier.RAM}
    world.close()


def test_a_damaged_slice_on_disk_is_not_brought_in(world: World) -> None:
    world.ask([2])
    stored = sample(2)[1][0].tobytes()
    for segment in session_folder(world.root, SESSION).glob("seg-*.kvs"):
        place = segment.read_bytes().find(stored)
        if place >= 0:
            with segment.open("r+b") as file:
                file.seek(place)
                file.write(bytes([stored[0] ^ 1]))
    world.keeper.look()
    world.keeper.fill(1 << 30)
    hash_ = session_hash(SESSION)
    assert world.arena.checksum_at(Place(hash_, 2, 0)) is None
    assert world.arena.checksum_at(Place(hash_, 2, 1)) is not None
    world.close()


def test_a_session_that_was_deleted_meanwhile_is_passed_over(world: World) -> None:
    world.ask([1])
    shutil.rmtree(session_folder(world.root, SESSION))
    world.keeper.look()
    assert world.keeper.fill(1 << 30) == 0
    world.close()


class Calls:
    """Counts calls of something, and makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.count = 0
        self._real = getattr(owner, name)
        monkeypatch.setattr(owner, name, self._call)

    def _call(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return self._real(*args, **options)


def test_what_was_dropped_is_passed_over_at_once_and_what_was_not_is_brought_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask(list(range(UNITS)))
    segments = stored_segments(world.root, SESSION)
    assert len(segments) > 1
    first_unit = segments[1].floor.first_unit
    drop_front(world.root, SESSION, before_segment=segments[1].number)
    opened = Calls(monkeypatch, SessionReader, "open")
    world.keeper.look()
    assert world.keeper.fill(1) == 0
    assert {place.unit_index for place in world.keeper._wanted} == set(range(first_unit, UNITS))
    world.keeper.fill(1 << 30)
    assert opened.count == 1
    assert world.ask([first_unit]) == [Tier.RAM] * SMALL.layer_count
    world.close()


def test_questions_about_sessions_that_are_gone_cost_a_turn_next_to_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ask(list(range(UNITS)))
    for name in ("gone-1", "gone-2"):
        question = world.trace.question(name)
        question.note(0, list(range(300)), [Tier.DISK] * 300)
    listed = Calls(monkeypatch, kvstore.arenakeeper, "stored_session_names")
    world.keeper.look()
    while world.keeper._wanted:
        world.keeper.fill(1 << 20)
    assert listed.count == 1
    assert not world.keeper._wanted
    shutil.rmtree(session_folder(world.root, SESSION))
    question = world.trace.question(SESSION)
    question.note(0, list(range(300)), [Tier.DISK] * 300)
    opened = Calls(monkeypatch, SessionReader, "open")
    world.keeper.look()
    world.keeper.fill(1)
    assert not world.keeper._wanted
    assert opened.count <= 1
    world.close()


def test_one_session_is_open_at_a_time_and_two_segments_at_most(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(root)
    folders = [session_folder(root, SESSION), *(session_folder(root, f"cam-{n}") for n in (2, 3))]
    for number in (2, 3):
        writer = SessionWriter.open(
            root,
            f"cam-{number}",
            geometry=SMALL,
            limits=LIMITS,
            shm_dir=world.shm,
            hot_tail_bytes=64 * KIB,
        )
        append(writer, 60)
        writer.flush()
        writer.close()
    for number in (2, 3, 2, 3):
        question = world.trace.question(f"cam-{number}")
        for unit in range(0, 60, 3):
            question.note(0, [unit], [Tier.DISK])
    world.ask([3, 5])
    world.keeper.look()
    brought_in: list[tuple[int, int]] = []
    bring_in = world.arena.take

    def watched(key: SliceKey, extent: Any) -> bool:
        links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        mine = [[link for link in links if link.startswith(f"{each}/seg-")] for each in folders]
        # The world's own reader has segments of its session open.
        brought_in.append((key.session_hash, len(mine[1]) + len(mine[2])))
        return bring_in(key, extent)

    monkeypatch.setattr(world.arena, "take", watched)
    while world.keeper._wanted:
        world.keeper.fill(4096 * KIB)
    sessions = [session for session, _ in brought_in]
    assert set(sessions) == {session_hash(name) for name in (SESSION, "cam-2", "cam-3")}
    assert len([1 for _ in itertools.groupby(sessions)]) == 3
    assert max(count for _, count in brought_in) <= 2
    assert world.keeper._reader is None
    world.close()


def test_a_turn_ends_where_nothing_that_is_wanted_can_be_brought_in(world: World) -> None:
    world.keeper.fill(1 << 30)
    question = world.trace.question(SESSION)
    question.note(0, list(range(UNITS, UNITS + 300)), [Tier.DISK] * 300)  # of another life
    world.keeper.look()
    turns = 0
    while world.keeper._wanted:
        left = len(world.keeper._wanted)
        assert world.keeper.fill(64 * KIB) == 0
        assert left - len(world.keeper._wanted) <= 16
        turns += 1
    assert turns >= 300 // 16
    world.close()


def test_a_thinned_unit_takes_the_place_of_what_it_was(root: Path) -> None:
    shm = root / "shm"
    shm.mkdir()
    slot_bytes = Layout(SCENE).extent_bytes(len(GRID))
    arena = Arena.create(root, budget_bytes=16 << 20, slot_bytes=slot_bytes, shm_dir=shm)
    writer = thinning_writer(root, arena=arena)
    append_scenes(writer, 150)
    ram = RamTier(root, shm_dir=shm, look_every_s=0)
    reader = SessionReader.open(root, SESSION, ram=ram)
    keeper = ArenaKeeper(arena, root, shm_dir=shm)
    trace = ReadTrace.create(root, shm_dir=shm)
    snapshot = reader.snapshot()
    thinned = [int(unit) for unit in np.flatnonzero(snapshot.coarsened)]
    held_count = arena.slice_count
    assert thinned
    for layer in range(SCENE.layer_count):
        tiers = read_units(reader, snapshot, thinned, layer)[2]
        assert tiers == [Tier.DISK] * len(thinned)
        trace.question(SESSION).note(layer, thinned, tiers)
    keeper.look()
    assert keeper.fill(1 << 30) > 0
    assert arena.slice_count == held_count  # they came for the whole ones
    for layer in range(SCENE.layer_count):
        assert read_units(reader, snapshot, thinned, layer)[2] == [Tier.RAM] * len(thinned)
        trace.question(SESSION).note(layer, thinned, [Tier.DISK] * len(thinned))
    assert all(is_part_of(reader, snapshot, unit) for unit in thinned)
    keeper.look()
    assert keeper.fill(1 << 30) == 0  # what is here already is not read again
    for each in (writer, reader, keeper, trace, arena):
        each.close()


def test_a_flipped_bit_in_memory_is_found_told_counted_and_met_by_the_disk(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.ask(list(range(UNITS)))
    world.keeper.look()
    world.keeper.fill(1 << 30)
    world.keeper.scrub(1 << 30)
    assert world.arena.damaged_count == 0
    with world.arena.path.open("r+b") as file:
        offset = world.arena.shape.slot_offset(
            world.arena._slots.places[Place(session_hash(SESSION), 7, 1)]
        )
        file.seek(offset + 33)
        byte = file.read(1)[0]
        file.seek(offset + 33)
        file.write(bytes([byte ^ 4]))
    world.keeper.scrub(1 << 30)
    assert world.arena.damaged_count == 1
    assert "was damaged" in caplog.text
    assert world.arena.checksum_at(Place(session_hash(SESSION), 7, 1)) is None
    assert world.ask([7]) == [Tier.RAM, Tier.DISK]
    snapshot = world.reader.snapshot()
    assert read_unit(world.reader, snapshot, 7, 1)[0].tobytes() == sample(7)[1][1].tobytes()
    world.keeper.look()
    world.keeper.fill(1 << 30)
    assert world.ask([7]) == [Tier.RAM, Tier.RAM]
    world.close()


def test_scrubbing_a_little_at_a_time_comes_to_every_slot(world: World) -> None:
    world.ask(list(range(UNITS)))
    world.keeper.look()
    world.keeper.fill(1 << 30)
    with world.arena.path.open("r+b") as file:
        for slot in world.arena._slots.keys:
            file.seek(world.arena.shape.slot_offset(slot))
            file.write(b"\xff" * 8)
    held = world.arena.slice_count
    for _ in range(held):
        world.keeper.scrub(SLOT_BYTES // 2)
    assert world.arena.damaged_count == held
    assert world.arena.slice_count == 0
    world.close()


def test_what_questions_use_stays_when_others_leave(world: World) -> None:
    world.ask([3])
    world.keeper.look()
    world.keeper.fill(1 << 30)
    assert world.ask([3]) == [Tier.RAM] * SMALL.layer_count
    world.keeper.look()  # it hears of the use
    data = np.zeros(64, np.uint8)
    for unit in range(3 * world.arena.shape.slot_count):
        world.arena.keep(99, unit, [data], [xxhash.xxh3_64_intdigest(data.data)])
    assert world.ask([3]) == [Tier.RAM] * SMALL.layer_count
    world.close()


def test_the_index_of_a_session_that_is_asked_about_counts_in_the_budget_for_a_while(
    world: World,
) -> None:
    index = session_folder(world.root, SESSION) / INDEX_NAME
    index.write_bytes(bytes(512 * KIB))
    world.keeper.look()
    whole = world.arena.file_bytes
    world.ask([1])
    world.keeper.look()
    assert world.arena.file_bytes <= whole - 500 * KIB
    assert world.arena.path.stat().st_blocks * 512 == world.arena.file_bytes
    world.now_s = 30.0
    world.keeper.look()
    assert world.arena.file_bytes <= whole - 500 * KIB
    world.now_s = 100.0
    world.keeper.look()
    assert world.arena.file_bytes == whole
    world.close()


def test_indexes_that_the_budget_has_no_room_for_are_told_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    index = session_folder(world.root, SESSION) / INDEX_NAME
    index.write_bytes(bytes(8192 * KIB))
    world.ask([1])
    world.keeper.look()
    world.keeper.look()
    assert caplog.text.count("take more than the RAM budget") == 1
    assert world.arena.slice_count == 0
    assert set(world.ask([1])) == {Tier.DISK}
    world.close()


def test_a_new_owner_hears_the_readers_that_are_there(world: World) -> None:
    world.ask([3])
    world.arena.close()
    world.arena = world.new_arena()
    world.keeper = world.new_keeper()
    assert set(world.ask([3])) == {Tier.DISK}
    world.keeper.look()
    world.keeper.fill(1 << 30)
    assert set(world.ask([3])) == {Tier.RAM}
    world.close()


def test_huge_pages_or_none_the_bytes_are_the_same(world: World) -> None:
    world.ask(list(range(UNITS)))
    world.keeper.look()
    world.keeper.fill(1 << 30)
    world.keeper.collapse(1 << 30)
    snapshot = world.reader.snapshot()
    assert all(unit_is(world.reader, snapshot, unit) for unit in range(UNITS))
    assert set(world.ask(list(range(UNITS)))) == {Tier.RAM}
    assert world.arena.path.stat().st_blocks * 512 <= 4096 * KIB
    world.close()
