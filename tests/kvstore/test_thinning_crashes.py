"""Thinning dies, fails or loses power at every call: the old segment is there, or the new one."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvstore import rewriting
from kvstore.diskio import Buffer, DiskIO
from kvstore.diskuse import used_bytes
from kvstore.errors import KVStoreError, StoreFullError, UnitsThinnedError, WriterFailedError
from kvstore.paths import segment_path
from kvstore.reader import SessionReader
from kvstore.verify import verify_store
from kvstore.writer import SessionWriter
from tests.kvstore.crash_lives import PromiseBrokenError, live_and_die
from tests.kvstore.samples import SESSION, kill
from tests.kvstore.simulated_disk import ProcessKilled, SimulatedDisk, SimulatedIO
from tests.kvstore.thinned import append_scenes, check_all, is_part_of, thinning_writer
from tests.kvstore.thinning_lives import SMALL_SCENE, THIN_LIMITS, ThinnedLives, longer_lives

_FILLED = 14
"""Units after which the next block makes a segment thinner."""


def folder_of(root: Path) -> Path:
    return root / "sessions" / SESSION


def open_small(root: Path, **changes: Any) -> SessionWriter:
    return thinning_writer(root, limits=THIN_LIMITS, geometry=SMALL_SCENE, **changes)


@pytest.fixture
def filled(root: Path) -> Path:
    """A store whose session is full but not thinned."""
    store = root / "filled"
    writer = open_small(store)
    append_scenes(writer, _FILLED)
    writer.flush()
    writer.close()
    assert not check_all(store, _FILLED).coarsened.any()
    return store


@dataclass
class Copies:
    """Fresh copies of a store."""

    origin: Path
    made: int = 0

    def fresh(self) -> Path:
        if self.made:
            shutil.rmtree(self.origin.parent / f"copy-{self.made}")
        self.made += 1
        return Path(shutil.copytree(self.origin, self.origin.parent / f"copy-{self.made}"))


def push(root: Path, io: DiskIO, count: int = 6) -> tuple[int, bool]:
    """Append until it is over, one way or the other: (durable units, whether it was killed)."""
    writer: SessionWriter | None = None
    killed = False
    durable = 0
    try:
        writer = open_small(root, io=io)
        durable = writer.durable_unit_count
        for _ in range(count):
            append_scenes(writer, 1)
            durable = writer.durable_unit_count
        writer.flush()
        durable = writer.durable_unit_count
    except ProcessKilled:
        killed = True
    except (KVStoreError, OSError):
        if writer is not None:
            durable = writer.durable_unit_count
    if writer is not None and killed:
        kill(writer)
    elif writer is not None:
        writer.close()
    return durable, killed


def is_whole(root: Path, durable: int) -> bool:
    """Recover, check everything, and return whether a unit is thinner than it was."""
    writer = open_small(root)
    assert writer.durable_unit_count >= durable
    coarsened = check_all(root, writer.durable_unit_count).coarsened
    assert not list(folder_of(root).glob("*.thin"))
    assert used_bytes(folder_of(root)) <= THIN_LIMITS.budget.session_bytes
    writer.close()
    return bool(coarsened.any())


@pytest.mark.parametrize("power_lost", [False, True])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_segment(
    filled: Path, power_lost: bool
) -> None:
    copies, outcomes, number = Copies(filled), [], 0
    while True:
        number += 1
        root = copies.fresh()
        disk = SimulatedDisk(random.Random(number))
        durable, killed = push(root, SimulatedIO(disk, killed_at=number))
        if not killed:
            break
        if power_lost:
            disk.cut_power()
        outcomes.append(is_whole(root, max(durable, _FILLED)))
    assert number > 30
    assert {True, False} == set(outcomes)


def test_a_kill_during_the_recovery_after_a_kill_changes_nothing(filled: Path) -> None:
    copies = Copies(filled)
    swept = 0
    for number in range(1, 45, 3):
        for second in range(1, 12):
            root = copies.fresh()
            disk = SimulatedDisk(random.Random(100 * number + second))
            durable, killed = push(root, SimulatedIO(disk, killed_at=number))
            left = len(list(folder_of(root).glob("*.thin")))
            _, killed_again = push(root, SimulatedIO(disk, killed_at=second), count=0)
            swept += left
            disk.cut_power()
            is_whole(root, max(durable, _FILLED))
            if not (killed and killed_again):
                break
    assert swept > 10


class _Failing(DiskIO):
    """One call fails, with this error; the others do what they should."""

    def __init__(self, number: int, code: int) -> None:
        self._left = number
        self._code = code
        self.failed = ""

    def _count(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.failed = name
            raise OSError(self._code, f"simulated failure of {name}")

    def create(self, path: Path) -> int:
        self._count(f"create {path.suffix}")
        return super().create(path)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._count("pwritev")
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._count("fdatasync")
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._count("fsync")
        super().fsync(fd)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self._count("fallocate")
        super().fallocate(fd, offset, length)

    def truncate(self, fd: int, size: int) -> None:
        self._count("truncate")
        super().truncate(fd, size)

    def unlink(self, path: Path) -> None:
        self._count("unlink")
        super().unlink(path)

    def rename(self, path: Path, onto: Path) -> None:
        self._count("rename")
        super().rename(path, onto)

    def fsync_folder(self, folder: Path) -> None:
        self._count("fsync_folder")
        super().fsync_folder(folder)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_call_ends_the_writer_or_refuses_and_loses_nothing(
    filled: Path, code: int
) -> None:
    copies, number, failed = Copies(filled), 0, set()
    while True:
        number += 1
        root = copies.fresh()
        io = _Failing(number, code)
        durable, _ = push(root, io)
        if not io.failed:
            break
        failed.add(io.failed)
        is_whole(root, max(durable, _FILLED))
        assert verify_store(root).damage == ()
    assert {"create .thin", "rename", "fsync", "fsync_folder", "pwritev", "fallocate"} <= failed


def test_a_disk_that_is_full_for_the_copy_refuses_and_the_writer_goes_on(filled: Path) -> None:
    class FullAside(DiskIO):
        full = True

        def fallocate(self, fd: int, offset: int, length: int) -> None:
            if self.full and str(Path(f"/proc/self/fd/{fd}").readlink()).endswith(".thin"):
                raise OSError(errno.ENOSPC, "simulated full disk")
            super().fallocate(fd, offset, length)

    io = FullAside()
    writer = open_small(filled, io=io)
    with pytest.raises(StoreFullError, match="thinner copy"):
        append_scenes(writer, 8)
    count = writer.visible_unit_count
    io.full = False
    append_scenes(writer, 8)
    assert check_all(filled, count + 8).coarsened.any()
    writer.close()


def test_a_failed_sync_is_not_tried_again(filled: Path) -> None:
    class FailsAside(DiskIO):
        def fsync(self, fd: int) -> None:
            if str(Path(f"/proc/self/fd/{fd}").readlink()).endswith(".thin"):
                raise OSError(errno.EIO, "simulated failure")
            super().fsync(fd)

    writer = open_small(filled, io=FailsAside())
    with pytest.raises(WriterFailedError):
        append_scenes(writer, 8)
    with pytest.raises(WriterFailedError):
        append_scenes(writer, 1)
    writer.close()
    assert not is_whole(filled, _FILLED)


@pytest.mark.parametrize("held", [True, False])
def test_a_writer_killed_before_it_told_readers_is_found_out(filled: Path, held: bool) -> None:
    """Readers hear of a rewriting through CTL; without it, from the segment itself."""
    reader = SessionReader.open(filled, SESSION)
    before = reader.snapshot()

    class DiesAfterRename(DiskIO):
        def rename(self, path: Path, onto: Path) -> None:
            super().rename(path, onto)
            if path.suffix == ".thin":
                raise ProcessKilled

    _, killed = push(filled, DiesAfterRename())
    assert killed
    if not held:  # as when other segments were read meanwhile
        reader._files.forget(0)
    told = 0
    for index in range(_FILLED):
        try:
            assert is_part_of(reader, before, index)
        except UnitsThinnedError as error:
            told += 1
            before = before.thinned(error.unit_indices, error.token_counts)
            assert is_part_of(reader, before, index)
    assert told == (0 if held else 1)
    reader.close()
    assert is_whole(filled, _FILLED)


def test_lives_on_a_disk_that_loses_sectors_keep_every_acknowledged_unit() -> None:
    tally = live_and_die(15, 6, limits=THIN_LIMITS, make_io=longer_lives, kind=ThinnedLives)
    assert tally.lives == 90
    assert tally.thinned > 100
    assert tally.torn_tails > 3


def test_a_store_that_renames_before_the_copy_is_durable_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rename_unsynced(self: SimulatedIO, fd: int) -> None:
        if self._path(fd).suffix != ".thin":
            self.fdatasync(fd)

    monkeypatch.setattr(SimulatedIO, "fsync", rename_unsynced)
    with pytest.raises(PromiseBrokenError):
        live_and_die(15, 6, limits=THIN_LIMITS, make_io=longer_lives, kind=ThinnedLives)


def test_a_store_that_writes_over_the_old_segment_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another order that looks right: the old one goes first, then the new one takes its name."""
    real = SimulatedIO.rename

    def removes_first(self: SimulatedIO, path: Path, onto: Path) -> None:
        if path.suffix == ".thin":
            self.unlink(onto)
        real(self, path, onto)

    monkeypatch.setattr(SimulatedIO, "rename", removes_first)
    with pytest.raises(PromiseBrokenError):
        live_and_die(15, 6, limits=THIN_LIMITS, make_io=longer_lives, kind=ThinnedLives)


def test_files_aside_are_no_segments() -> None:
    aside = segment_path(Path("/s"), 7).name + ".3" + rewriting._SUFFIX
    assert aside == "seg-000007.kvs.3.thin"
