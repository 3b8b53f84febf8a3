"""Retention by age: old units go, by both clocks; no jump of one of them costs what is young."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import SessionRecordCorruptError, WriterFailedError
from kvstore.reader import SessionReader
from kvstore.verify import verify_store
from kvstore.writer import SessionWriter
from tests.kvstore.samples import LIMITS, SESSION, open_writer, resume_blob, sample, unit_is

_RETAIN_S = 64.0
_KEEPING = replace(LIMITS, retain_s=_RETAIN_S, preallocate_bytes=4096)


class Clock:
    """The wall clock of a test, which others may set."""

    def __init__(self) -> None:
        self.now_s = 1.7e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    wall = Clock()
    monkeypatch.setattr("kvstore.blocklog.time.time", wall)
    return wall


def stream(
    writer: SessionWriter, clock: Clock, count: int, *, jump_s: float = 0.0, pace: float = 1.0
) -> None:
    """Append units, one a second of the stream, while the wall clock goes on at `pace`."""
    for _ in range(count):
        index = writer.visible_unit_count
        unit, keys, values = sample(index)
        later = replace(
            unit, first_pts_s=unit.first_pts_s + jump_s, last_pts_s=unit.last_pts_s + jump_s
        )
        writer.append(later, keys, values, resume=resume_blob(index))
        writer.publish()
        clock.now_s += pace


def first_unit(root: Path, unit_count: int) -> int:
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert snapshot.unit_count == unit_count
    first = snapshot.first_unit
    reader.close()
    return first


def test_old_units_go_and_young_ones_stay(root: Path, clock: Clock) -> None:
    writer = open_writer(root, limits=_KEEPING)
    for _ in range(30):
        stream(writer, clock, 10)
        writer.flush()
        count = writer.visible_unit_count
        first = first_unit(root, count)
        assert first <= max(count - _RETAIN_S, 0)
        # Whole segments go, when another begins: a few of sixteen may be late.
        assert first >= count - 1.5 * _RETAIN_S
    reader = SessionReader.open(root, SESSION)
    assert all(unit_is(reader, reader.snapshot(), index) for index in range(first, count))
    reader.close()
    writer.close()
    assert verify_store(root).damage == ()


def test_a_restart_goes_on_with_the_ages_of_what_is_there(root: Path, clock: Clock) -> None:
    writer = open_writer(root, limits=_KEEPING)
    stream(writer, clock, 60)
    writer.flush()
    writer.close()
    assert first_unit(root, 60) == 0
    writer = open_writer(root, limits=_KEEPING)
    stream(writer, clock, 70)
    writer.flush()
    assert 20 < first_unit(root, 130) <= 130 - _RETAIN_S
    writer.close()


def _wall_jumps_ahead(writer: SessionWriter, clock: Clock) -> None:
    clock.now_s += 1e9
    stream(writer, clock, 20)


def _wall_jumps_back(writer: SessionWriter, clock: Clock) -> None:
    clock.now_s -= 1e9
    stream(writer, clock, 20)


def _stream_jumps_ahead(writer: SessionWriter, clock: Clock) -> None:
    stream(writer, clock, 20, jump_s=1e9)


@pytest.mark.parametrize("jump", [_wall_jumps_ahead, _wall_jumps_back, _stream_jumps_ahead])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_jump_of_one_clock_drops_nothing_that_is_young(
    root: Path, clock: Clock, jump: Callable[[SessionWriter, Clock], None], restarts: bool
) -> None:
    writer = open_writer(root, limits=_KEEPING)
    stream(writer, clock, 40)
    writer.flush()
    if restarts:
        writer.close()
        writer = open_writer(root, limits=_KEEPING)
    jump(writer, clock)
    writer.flush()
    assert first_unit(root, writer.visible_unit_count) == 0
    writer.close()


def test_a_file_pushed_fast_is_kept_until_the_wall_clock_says_so_too(
    root: Path, clock: Clock
) -> None:
    writer = open_writer(root, limits=_KEEPING)
    stream(writer, clock, 300, pace=0.001)
    writer.flush()
    assert first_unit(root, 300) == 0
    clock.now_s += _RETAIN_S
    stream(writer, clock, 20)
    writer.flush()
    assert first_unit(root, 320) > 200
    writer.close()


def test_what_the_next_unit_sees_stays_whatever_its_age(root: Path, clock: Clock) -> None:
    writer = open_writer(root, limits=replace(_KEEPING, keep_tokens=10**6))
    stream(writer, clock, 200)
    writer.flush()
    assert first_unit(root, 200) == 0
    writer.close()


@pytest.mark.parametrize("retain_s", [-1.0, float("inf"), float("nan")])
def test_an_age_that_makes_no_sense_is_refused(retain_s: float) -> None:
    with pytest.raises(ValueError, match="retain_s"):
        replace(LIMITS, retain_s=retain_s)


def test_age_takes_nothing_while_nobody_can_say_what_is_pinned(root: Path, clock: Clock) -> None:
    readable = True

    def pinned() -> list[tuple[float, float]]:
        if not readable:
            raise SessionRecordCorruptError(SESSION, "it does not match its checksum")
        return []

    writer = open_writer(root, limits=_KEEPING, pinned=pinned)
    stream(writer, clock, 40)
    readable = False
    stream(writer, clock, 160)
    writer.flush()
    assert first_unit(root, 200) == 0
    readable = True
    stream(writer, clock, 20)
    writer.flush()
    assert first_unit(root, 220) > 100
    writer.close()
    assert verify_store(root).damage == ()


@pytest.mark.parametrize("error", [RuntimeError("nobody thought of it"), MemoryError()])
def test_a_failure_behind_the_sync_ends_the_writer_and_loses_nothing(
    root: Path, clock: Clock, error: Exception
) -> None:
    """Written once more, the block's units would be there twice."""
    writer = open_writer(root, limits=_KEEPING)
    stream(writer, clock, 12)
    writer.flush()
    append = writer._log.append

    def fails_at_its_end(*arguments: Any) -> bool:
        append(*arguments)
        raise error

    writer._log.append = fails_at_its_end  # type: ignore[method-assign]
    stream(writer, clock, 2)
    with pytest.raises(type(error)):
        writer.flush()
    with pytest.raises(WriterFailedError):
        writer.flush()
    writer.close()
    writer = open_writer(root, limits=_KEEPING)
    assert writer.durable_unit_count in (12, 14)
    stream(writer, clock, 2)
    writer.close()
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert all(unit_is(reader, snapshot, index) for index in range(snapshot.unit_count))
    reader.close()
    assert verify_store(root).damage == ()
