"""The arena's owner: it hears what questions use, brings in what they read, and finds damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash

from kvstore.arena import Arena
from kvstore.arenakeeper import ArenaKeeper
from kvstore.encoding import Layout
from kvstore.eviction import Place
from kvstore.geometry import Tier
from kvstore.guarded import GuardedReader
from kvstore.paths import INDEX_NAME, session_folder, session_hash
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.readpool import Reading
from kvstore.readtrace import ReadTrace
from tests.kvstore.samples import SESSION, SMALL, append, open_writer, read_unit, sample, unit_is

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
    assert not world.arena.holds(Place(hash_, 2, 0))
    assert world.arena.holds(Place(hash_, 2, 1))
    world.close()


def test_a_session_that_was_deleted_meanwhile_is_passed_over(world: World) -> None:
    world.ask([1])
    shutil.rmtree(session_folder(world.root, SESSION))
    world.keeper.look()
    assert world.keeper.fill(1 << 30) == 0
    world.close()


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
    assert not world.arena.holds(Place(session_hash(SESSION), 7, 1))
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
