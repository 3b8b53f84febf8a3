"""Dropping the oldest of a session without a writer: as a writer does it, under its lock."""

from __future__ import annotations

import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.errors import (
    SessionLockedError,
    SessionNotFoundError,
    UnitDroppedError,
    WriterFencedError,
)
from kvstore.glance import glance
from kvstore.paths import TOMBSTONE_NAME, segment_numbers
from kvstore.reader import SessionReader
from kvstore.retention import droppable
from kvstore.session import SessionRecord, change_session, create_session
from kvstore.trimming import drop_front, stored_segments
from kvstore.verify import verify_store
from tests.kvstore.samples import LIMITS, SESSION, append, open_writer, sample, unit_is
from tests.kvstore.simulated_disk import ProcessKilled, SimulatedDisk, SimulatedIO

_MANY = 10**9
_SMALL_SEGMENTS = replace(LIMITS, segment_bytes=32 * 1024, preallocate_bytes=4096)


def folder_of(root: Path) -> Path:
    return root / "sessions" / SESSION


def filled(root: Path, count: int = 120) -> None:
    writer = open_writer(root, limits=_SMALL_SEGMENTS)
    append(writer, count)
    writer.flush()
    writer.close()


def holds(root: Path, unit_count: int) -> int:
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert snapshot.unit_count == unit_count
    for index in range(snapshot.first_unit, unit_count):
        assert unit_is(reader, snapshot, index)
    reader.close()
    return snapshot.first_unit


def test_segments_tell_their_times_tokens_and_bytes(root: Path) -> None:
    filled(root)
    segments = stored_segments(root, SESSION)
    assert [segment.number for segment in segments] == segment_numbers(folder_of(root))
    starts = [segment.floor.first_unit for segment in segments]
    for segment, start, stop in zip(segments, starts, [*starts[1:], 120], strict=True):
        assert (segment.first_pts_s, segment.last_pts_s) == (float(start), stop - 0.5)
        assert segment.token_count == sum(sample(i)[0].token_count for i in range(start, stop))
        assert segment.disk_bytes > 0
        assert segment.written_unix_s > 1.6e9


def test_what_goes_is_gone_for_every_reader_and_the_epoch_stays(root: Path) -> None:
    filled(root)
    before = glance(root, SESSION)
    assert before is not None
    reader = SessionReader.open(root, SESSION)
    old = reader.snapshot()
    segments = stored_segments(root, SESSION)
    assert drop_front(root, SESSION, before_segment=segments[3].number) == 3
    first = segments[3].floor.first_unit
    assert holds(root, 120) == first
    assert reader.snapshot().first_unit == first
    with pytest.raises(UnitDroppedError):
        unit_is(reader, old, 0)
    reader.close()
    after = glance(root, SESSION)
    assert after == replace(before, first_unit=first)
    assert verify_store(root).damage == ()
    # A writer goes on behind it as ever.
    writer = open_writer(root, limits=_SMALL_SEGMENTS)
    assert writer.recovery.first_unit == first
    append(writer, 10)
    writer.close()


def test_a_session_whose_page_is_gone_can_let_go_too(root: Path) -> None:
    filled(root)
    (folder_of(root) / "CTL").unlink()
    segments = stored_segments(root, SESSION)
    assert drop_front(root, SESSION, before_segment=segments[2].number) == 2
    assert holds(root, 120) == segments[2].floor.first_unit


def test_the_last_segment_stays_and_what_the_next_unit_sees(root: Path) -> None:
    filled(root)
    segments = stored_segments(root, SESSION)
    may_go = droppable(segments, keep_tokens=0, is_pinned=lambda segment: False)
    assert list(may_go) == segments[:-1]
    drop_front(root, SESSION, before_segment=_MANY, keep_tokens=300)
    left = stored_segments(root, SESSION)
    assert 300 <= sum(segment.token_count for segment in left) < 450
    drop_front(root, SESSION, before_segment=_MANY)
    assert stored_segments(root, SESSION) == [replace(segments[-1])]
    assert drop_front(root, SESSION, before_segment=_MANY) == 0
    assert verify_store(root).damage == ()


def test_a_pinned_span_stays_and_all_that_is_behind_it(root: Path) -> None:
    filled(root)
    segments = stored_segments(root, SESSION)
    unit = segments[4].floor.first_unit + 1
    pins = [(float(unit), unit + 0.25)]
    asked: list[int] = []

    def pinned() -> list[tuple[float, float]]:
        asked.append(1)
        return pins

    assert drop_front(root, SESSION, before_segment=_MANY, pinned=pinned) == 4
    assert drop_front(root, SESSION, before_segment=_MANY, pinned=pinned) == 0
    assert len(asked) == 2
    assert holds(root, 120) == segments[4].floor.first_unit
    pins.clear()
    assert drop_front(root, SESSION, before_segment=_MANY, pinned=pinned) > 0


def test_pins_that_cannot_be_told_keep_everything(root: Path) -> None:
    filled(root)

    def broken() -> list[tuple[float, float]]:
        raise OSError("the record cannot be read")

    with pytest.raises(OSError, match="record"):
        drop_front(root, SESSION, before_segment=_MANY, pinned=broken)
    assert holds(root, 120) == 0
    drop_front(root, SESSION, before_segment=_MANY)  # the lock was given back


def test_nothing_goes_under_a_writer_or_of_what_is_another_processs_or_is_deleted(
    root: Path,
) -> None:
    filled(root)
    with pytest.raises(WriterFencedError):
        drop_front(root, SESSION, before_segment=_MANY, may_commit=lambda: False)
    writer = open_writer(root, limits=_SMALL_SEGMENTS)
    with pytest.raises(SessionLockedError):
        drop_front(root, SESSION, before_segment=_MANY)
    writer.close()
    assert holds(root, 120) == 0
    (folder_of(root) / TOMBSTONE_NAME).touch()
    for name in (SESSION, "nobody"):
        with pytest.raises(SessionNotFoundError):
            drop_front(root, name, before_segment=_MANY)
        with pytest.raises(SessionNotFoundError):
            stored_segments(root, name)


@pytest.mark.parametrize("power_is_cut", [False, True])
def test_a_crash_at_any_call_leaves_the_drop_done_or_not_begun(
    tmp_path: Path, power_is_cut: bool
) -> None:
    firsts = set()
    for killed_at in range(1, 40):
        root = tmp_path / f"{killed_at}"
        root.mkdir()
        filled(root, 60)
        segments = stored_segments(root, SESSION)
        disk = SimulatedDisk(random.Random(killed_at))
        io = SimulatedIO(disk, killed_at=killed_at)
        target = segments[2]
        died = False
        try:
            drop_front(root, SESSION, before_segment=target.number, io=io)
        except ProcessKilled:
            died = True
        if power_is_cut:
            disk.cut_power()
        first = holds(root, 60)
        assert first in (0, target.floor.first_unit)
        firsts.add(first)
        assert verify_store(root).damage == ()
        open_writer(root, limits=_SMALL_SEGMENTS).close()
        # The record may have been durable before readers were told: recovery tells them.
        assert holds(root, 60) in (first, target.floor.first_unit)
        assert (first == 0) or holds(root, 60) == first
        if not died:
            assert first == target.floor.first_unit
            break
    else:
        raise AssertionError("it never ran to its end")
    assert firsts == {0, target.floor.first_unit}


def test_nothing_is_pinned_between_the_question_for_pins_and_the_drop(root: Path) -> None:
    filled(root)
    create = SessionRecord(session_id=SESSION, created_unix_s=1.0, unit_period_s=1.0)
    update = folder_of(root) / "session.json"
    aside = root / "aside"
    create_session(aside, create)
    shutil.copy(aside / "sessions" / SESSION / "session.json", update)
    pinning: list[threading.Thread] = []
    seen: list[int] = []

    def pin() -> None:
        def change(record: SessionRecord) -> SessionRecord:
            seen.append(holds(root, 120))
            return replace(record, pinned_spans=((0.0, 1.0),))

        change_session(root, SESSION, change)

    def pinned() -> list[tuple[float, float]]:
        pinning.append(threading.Thread(target=pin))
        pinning[0].start()
        pinning[0].join(0.3)  # it would have been done by now
        return []

    segments = stored_segments(root, SESSION)
    assert drop_front(root, SESSION, before_segment=segments[3].number, pinned=pinned) == 3
    pinning[0].join()
    assert seen == [segments[3].floor.first_unit]  # whoever pins sees what was dropped
