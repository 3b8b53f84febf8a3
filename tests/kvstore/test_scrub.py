"""Damage is found where it is, told at once, at no more than the rate asked for."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvstore.checking import Damage
from kvstore.floor import read_floor
from kvstore.incoming import incoming_folder
from kvstore.leftovers import Cleared, clear_leftovers
from kvstore.locking import lock_session, release_session
from kvstore.paths import (
    TOMBSTONE_NAME,
    segment_path,
    session_folder,
    session_hash,
    trash_folder,
)
from kvstore.scrub import Pace
from kvstore.verify import StoreCheck, verify_store
from tests.kvstore.dropped import dropping_writer
from tests.kvstore.samples import LIMITS, SESSION, SMALL, append, kill, open_writer, sample
from tests.kvstore.test_damage import build, places


class Clock:
    """A clock that only waiting moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def wait(self, duration_s: float) -> None:
        self.now_s += duration_s

    def __call__(self) -> float:
        return self.now_s


def test_a_pace_keeps_to_its_rate_and_makes_no_burst_of_lost_time() -> None:
    clock = Clock()
    pace = Pace(100.0, wait=clock.wait, clock=clock)
    for done_bytes in range(50, 1001, 50):
        pace(done_bytes, 1000)
    assert clock.now_s == pytest.approx(10.0)
    clock.now_s += 1000.0  # the disk hung
    pace(1200, 2000)  # at most a second's bytes are free
    assert clock.now_s == pytest.approx(1011.0)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_a_rate_must_be_one(rate: float) -> None:
    with pytest.raises(ValueError, match="bytes_per_s"):
        Pace(rate)


def test_every_byte_is_counted_slice_by_slice(root: Path) -> None:
    blocks = build(root)
    seen: list[int] = []
    report = StoreCheck(root, progress=lambda done, total: seen.append(done)).run()
    assert seen == sorted(seen)
    assert seen[-1] == report.byte_count
    assert report.byte_count == sum(place.stop - place.offset for place in blocks)
    largest = max(b - a for a, b in itertools.pairwise(seen))
    assert largest < max(place.stop - place.offset for place in blocks)


def test_damage_is_told_when_it_is_read_not_at_the_end(root: Path) -> None:
    blocks = build(root)
    with open(segment_path(session_folder(root, SESSION), 0), "r+b") as file:
        last_layer = SMALL.layer_count - 1
        start = blocks[0].offset + blocks[0].header.layer_offset(blocks[0].layout, last_layer)
        os.pwrite(file.fileno(), b"\xff\x00\xff", start)
    told: list[tuple[int, Damage]] = []
    check = StoreCheck(root, on_damage=lambda damage: told.append((check.read_bytes, damage)))
    report = check.run()
    assert [damage for _, damage in told] == list(report.damage)
    at_bytes, damage = told[0]
    assert at_bytes < blocks[1].stop
    assert (damage.block_index, damage.unit_index, damage.layer_index) == (0, 0, last_layer)


def test_a_sector_that_cannot_be_read_is_damage_and_the_rest_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = build(root)
    bad = next(place for place in blocks if place.header.sequence == 2)
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        name = os.readlink(f"/proc/self/fd/{fd}")
        first_layer = bad.offset + bad.header.layer_offset(bad.layout, 0)
        if name.endswith(f"seg-{bad.segment_number:06d}.kvs") and offset == first_layer:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    report = verify_store(root)
    assert [(found.block_index, found.reason) for found in report.damage] == [
        (2, "it cannot be read: Input/output error")
    ]
    assert report.block_count == len(blocks)


def test_what_is_dropped_while_it_is_read_is_no_damage(root: Path) -> None:
    writer = dropping_writer(root)
    append(writer, 60)
    writer.flush()

    def go_on(done: int, total: int) -> None:
        if writer.visible_unit_count < 400:
            append(writer, 20)

    report = StoreCheck(root, progress=go_on).run()
    assert writer.recovery.first_unit == 0
    dropped = read_floor(session_folder(root, SESSION), SESSION, session_hash(SESSION))
    assert dropped.first_segment > 3
    assert report.damage == ()
    writer.close()
    assert verify_store(root).damage == ()
    segment_path(session_folder(root, SESSION), dropped.first_segment).unlink()
    assert verify_store(root).damage[0].reason.startswith("missing before seg-")


def test_a_stopped_reading_knows_its_place(root: Path) -> None:
    build(root)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    check = StoreCheck(root, progress=stop)
    assert check.place == "before the first session"
    with pytest.raises(KeyboardInterrupt):
        check.run()
    assert check.place == f"session {SESSION}, block 0"


def paths_of(root: Path, names: Sequence[str]) -> list[Path]:
    return [trash_folder(root) / name for name in names]


def test_what_crashes_left_goes_and_what_is_at_work_stays(root: Path) -> None:
    writer = open_writer(root)
    append(writer, 3)
    kill(writer)  # its hot tail stays behind
    finished, at_work = session_folder(root, "gone"), session_folder(root, "going")
    for folder in (finished, at_work):
        folder.mkdir()
        (folder / TOMBSTONE_NAME).touch()
    lock_fd = lock_session(at_work, "going")
    old, locked, fresh = paths_of(root, ["old", "locked", "fresh"])
    for folder in (old, locked, fresh):
        folder.mkdir(parents=True)
    trash_lock_fd = lock_session(locked, "locked")
    for folder in (old, locked):
        os.utime(folder, (time.time() - 3600,) * 2)
    (incoming_folder(root) / "left").mkdir(parents=True)
    cleared = clear_leftovers(root, shm_dir=root / "shm")
    assert cleared == Cleared(deletion_count=2, import_count=1, hot_tail_count=1)
    assert not finished.exists()
    assert not old.exists()
    assert at_work.exists()
    assert locked.exists()
    assert fresh.exists()
    release_session(lock_fd)
    release_session(trash_lock_fd)


def test_a_live_writer_keeps_its_hot_tail(root: Path) -> None:
    writer = open_writer(root)
    append(writer, 2)
    assert clear_leftovers(root, shm_dir=root / "shm").hot_tail_count == 0
    unit, keys, values = sample(2)
    writer.append(unit, keys, values, resume=b"")
    writer.close()


def test_the_samples_make_several_blocks_a_segment(root: Path) -> None:
    """The tests above rest on it."""
    blocks = build(root)
    assert len(places(root)) > len({place.segment_number for place in blocks})
    assert LIMITS.segment_bytes < 1 << 20
