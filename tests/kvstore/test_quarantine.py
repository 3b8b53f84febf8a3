"""Damage is told of all units at once, remembered, not read again, and forgotten when repaired."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import SliceCorruptError
from kvstore.quarantine import Quarantine, quarantine_path, quarantined, sweep_quarantine
from kvstore.reader import SessionReader
from tests.kvstore.damaging import AnyChecksum
from tests.kvstore.samples import SESSION, append, open_writer, read_units, sample

UNIT_COUNT = 12
LAYER = 1
DAMAGED = (2, 7)

Flip = Callable[[int], None]


def extent(root: Path, unit: int) -> tuple[Path, int]:
    """Where the keys of a unit lie in the layer."""
    folder = root / "sessions" / SESSION
    _, keys, _ = sample(unit)
    for path in sorted(folder.glob("seg-*.kvs")):
        at = path.read_bytes().find(keys[LAYER].tobytes())
        if at >= 0:
            return path, at
    raise AssertionError(f"unit {unit} is not on disk")


@pytest.fixture
def flip(root: Path) -> Flip:
    """Turns a byte of a unit's keys over, in place; once more: it is whole again."""
    writer = open_writer(root)
    append(writer, UNIT_COUNT)
    writer.flush()
    writer.close()
    places = {unit: extent(root, unit) for unit in range(UNIT_COUNT)}

    def turn(unit: int) -> None:
        path, offset = places[unit]
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x40]))

    return turn


def reader_of(root: Path) -> SessionReader:
    return SessionReader.open(root, SESSION, quarantine=Quarantine(root, SESSION))


def lost(reader: SessionReader, units: Sequence[int] = range(UNIT_COUNT)) -> dict[int, bool]:
    """Which of the units one read cannot give, and whether the disk refused."""
    try:
        keys, values, _ = read_units(reader, reader.snapshot(), units, LAYER)
    except SliceCorruptError as error:
        return {each.unit_index: each.unreadable for each in error.damaged}
    expected = [sample(unit) for unit in units]
    assert keys.tobytes() == b"".join(each[1][LAYER].tobytes() for each in expected)
    assert values.tobytes() == b"".join(each[2][LAYER].tobytes() for each in expected)
    return {}


def damaged_records(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.levelno == logging.ERROR]


def test_one_read_tells_all_that_is_damaged(root: Path, flip: Flip) -> None:
    for unit in DAMAGED:
        flip(unit)
    reader = SessionReader.open(root, SESSION)
    assert lost(reader) == dict.fromkeys(DAMAGED, False)
    assert lost(reader, [0, 1, 3]) == {}
    assert not quarantine_path(root, SESSION).exists()
    reader.close()


def test_a_slice_that_is_read_again_costs_no_other_segment_its_open_file(
    root: Path, flip: Flip
) -> None:
    first, _ = extent(root, 0)
    last, _ = extent(root, UNIT_COUNT - 1)
    assert first != last
    flip(0)
    reader = reader_of(root)
    assert lost(reader) == {0: False}
    forgotten: list[int] = []
    forget = reader._files._forget

    def watched(wanted: Callable[[int], bool]) -> None:
        forgotten.extend(number for number in range(10) if wanted(number))
        forget(wanted)

    reader._files._forget = watched  # type: ignore[method-assign]
    flip(0)
    assert lost(reader) == {}
    assert forgotten == [0]
    reader.close()


def test_without_its_checksum_a_flipped_byte_would_be_served(
    root: Path, flip: Flip, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(DAMAGED[0])
    monkeypatch.setattr("kvstore.extents.kv_checksum", lambda *parts: AnyChecksum())
    reader = SessionReader.open(root, SESSION)
    with pytest.raises(AssertionError):
        assert lost(reader) == {DAMAGED[0]: False}
    reader.close()


def test_a_disk_that_refuses_is_told_apart_and_costs_its_unit_only(
    root: Path, flip: Flip, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, bad = extent(root, 4)
    reader = reader_of(root)
    preadv = os.preadv

    def failing(fd: int, buffers: Any, offset: int) -> int:
        stop = offset + sum(memoryview(buffer).nbytes for buffer in buffers)
        if offset <= bad < stop and os.readlink(f"/proc/self/fd/{fd}") == str(path):
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset)

    with monkeypatch.context() as disk:
        disk.setattr("os.preadv", failing)
        assert lost(reader) == {4: True}
    assert quarantined(root, SESSION)[0].unreadable
    reader.close()


def test_a_fault_of_the_process_is_no_damage(
    root: Path, flip: Flip, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(root)
    snapshot = reader.snapshot()

    def refuse(*args: Any, **options: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    reader._files.forget(0)
    monkeypatch.setattr("kvstore.segmentfiles.os.open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        read_units(reader, snapshot, [0], LAYER)
    assert quarantined(root, SESSION) == []
    reader.close()


def test_what_is_damaged_is_not_read_again_by_any_later_reader(
    root: Path, flip: Flip, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flip(DAMAGED[0])
    first = reader_of(root)
    assert lost(first) == {DAMAGED[0]: False}
    (record,) = damaged_records(caplog)
    assert (record.session, record.unit, record.layer) == (SESSION, DAMAGED[0], LAYER)
    assert record.block == quarantined(root, SESSION)[0].block_index
    path, offset = extent_of_damaged(root)
    preadv, touched = os.preadv, []

    def watching(fd: int, buffers: Any, at: int) -> int:
        stop = at + sum(memoryview(buffer).nbytes for buffer in buffers)
        if os.readlink(f"/proc/self/fd/{fd}") == str(path) and at <= offset < stop:
            touched.append(at)
        return preadv(fd, buffers, at)

    monkeypatch.setattr("os.preadv", watching)
    second = reader_of(root)
    for reader in (first, second):
        assert lost(reader) == {DAMAGED[0]: False}
    assert touched == []
    assert len(damaged_records(caplog)) == 1
    forgetful = SessionReader.open(root, SESSION)
    assert lost(forgetful) == {DAMAGED[0]: False}
    assert touched  # the watch does see a reader without a quarantine
    for reader in (first, second, forgetful):
        reader.close()


def extent_of_damaged(root: Path) -> tuple[Path, int]:
    """Where the second byte of the damaged unit's keys lies; the first one is turned over."""
    _, keys, _ = sample(DAMAGED[0])
    for path in sorted((root / "sessions" / SESSION).glob("seg-*.kvs")):
        at = path.read_bytes().find(keys[LAYER].tobytes()[1:])
        if at >= 0:
            return path, at
    raise AssertionError("not on disk")


@pytest.mark.parametrize("how", ["in place", "from a copy"])
def test_a_repaired_slice_is_read_again(
    root: Path, flip: Flip, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path, _ = extent(root, DAMAGED[0])
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    flip(DAMAGED[0])
    reader = reader_of(root)
    assert lost(reader) == {DAMAGED[0]: False}
    if how == "in place":
        flip(DAMAGED[0])
    else:
        copy.rename(path)
    assert lost(reader) == {}
    assert quarantined(root, SESSION) == []
    assert "a damaged unit is whole again" in caplog.messages
    reader.close()
    again = reader_of(root)
    assert lost(again) == {}
    again.close()


def test_a_file_that_changed_elsewhere_leaves_the_slice_damaged(
    root: Path, flip: Flip, caplog: pytest.LogCaptureFixture
) -> None:
    flip(DAMAGED[0])
    reader = reader_of(root)
    assert lost(reader) == {DAMAGED[0]: False}
    before = quarantined(root, SESSION)
    extent_of_damaged(root)[0].touch()
    assert lost(reader) == {DAMAGED[0]: False}
    (after,) = quarantined(root, SESSION)
    assert after.changed_ns > before[0].changed_ns
    assert len(damaged_records(caplog)) == 1
    reader.close()


def test_a_torn_line_costs_nothing_but_itself(root: Path, flip: Flip) -> None:
    for unit in DAMAGED:
        flip(unit)
    reader = reader_of(root)
    lost(reader, [DAMAGED[0]])
    path = quarantine_path(root, SESSION)
    path.write_bytes(path.read_bytes() + b'0123456789abcdef {"state": "dam')
    reader.close()
    after_crash = reader_of(root)
    assert lost(after_crash) == dict.fromkeys(DAMAGED, False)
    after_crash.close()
    assert [each.unit_index for each in quarantined(root, SESSION)] == list(DAMAGED)


def test_damage_that_cannot_be_written_down_is_still_told_and_not_read_again(
    root: Path, flip: Flip, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "quarantine").write_text("in the way of a folder")
    flip(DAMAGED[0])
    reader = reader_of(root)
    for _ in range(2):
        assert lost(reader) == {DAMAGED[0]: False}
    assert "damage could not be remembered beyond this process" in caplog.messages
    assert len(damaged_records(caplog)) == 1
    reader.close()


def test_a_reader_writes_nothing_into_the_sessions_folder(root: Path, flip: Flip) -> None:
    flip(DAMAGED[0])
    folder = root / "sessions" / SESSION
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    reader = reader_of(root)
    lost(reader)
    reader.close()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_damage_of_a_deleted_session_is_forgotten(root: Path, flip: Flip) -> None:
    flip(DAMAGED[0])
    reader = reader_of(root)
    lost(reader)
    reader.close()
    sweep_quarantine(root)
    assert len(quarantined(root, SESSION)) == 1
    shutil.rmtree(root / "sessions" / SESSION)
    sweep_quarantine(root)
    assert not quarantine_path(root, SESSION).exists()


def test_a_block_written_anew_is_not_the_damaged_one(root: Path, flip: Flip) -> None:
    flip(DAMAGED[0])
    reader = reader_of(root)
    lost(reader)
    reader.close()
    shutil.rmtree(root / "sessions" / SESSION)
    writer = open_writer(root)
    append(writer, UNIT_COUNT, salt=1)
    writer.flush()
    writer.close()
    anew = reader_of(root)
    read_units(anew, anew.snapshot(), range(UNIT_COUNT), LAYER)
    anew.close()
