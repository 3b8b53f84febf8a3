"""What a store is said to hold agrees with what was written, and looking changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvstore.paths import session_folder
from kvstore.quarantine import DamagedSlice, Quarantine
from kvstore.reader import SessionReader
from kvstore.session import SessionRecord, create_session, update_session
from kvstore.stat import stat_session, stat_store
from tests.kvstore.dropped import dropping_writer
from tests.kvstore.samples import SESSION, SMALL, append, open_writer, sample

RECORD = SessionRecord(session_id=SESSION, created_unix_s=1.0, unit_period_s=1.0)


def contents(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file of the store: inode, time of its last change, bytes."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted((root / "sessions").rglob("*"))
        if path.is_file()
    }


def test_it_counts_what_was_written_while_a_writer_is_at_work(root: Path) -> None:
    create_session(root, RECORD)
    writer = open_writer(root)
    append(writer, 12)
    writer.flush()
    append(writer, 2)
    before = contents(root)
    stat = stat_session(root, SESSION)
    assert contents(root) == before
    assert (stat.state, stat.writer, stat.encoding) == ("live", "open", "model")
    assert (stat.visible_unit_count, stat.durable_unit_count) == (14, writer.durable_unit_count)
    assert (stat.first_pts_s, stat.last_pts_s, stat.covered_s) == (0.0, 13.5, 13.5)
    counts = [sample(index)[0].token_count for index in range(14)]
    assert stat.token_count == sum(counts)
    token_bytes = 2 * SMALL.layer_count * SMALL.token_bytes
    assert stat.logical_bytes == sum(counts[: writer.durable_unit_count]) * token_bytes
    folder = session_folder(root, SESSION)
    assert stat.segment_count == len(list(folder.glob("seg-*.kvs")))
    assert stat.physical_bytes == sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert stat.bytes_per_stream_hour == pytest.approx(stat.physical_bytes / 13.5 * 3600)
    assert stat.damage == ()
    writer.close()
    assert stat_session(root, SESSION).writer == "closed"


def test_a_session_without_units_has_no_length_and_no_rate(root: Path) -> None:
    create_session(root, RECORD)
    stat = stat_session(root, SESSION)
    assert (stat.visible_unit_count, stat.block_count, stat.logical_bytes) == (0, 0, 0)
    assert (stat.writer, stat.bytes_per_stream_hour, stat.encoding) == ("none", None, None)


def test_damage_hides_counts_and_never_another_session(root: Path) -> None:
    create_session(root, RECORD)
    create_session(root, SessionRecord(session_id="a", created_unix_s=1.0, unit_period_s=1.0))
    writer = open_writer(root)
    append(writer, 12)
    writer.close()
    update_session(root, SessionRecord(session_id="a", created_unix_s=2.0, unit_period_s=1.0))
    with open(session_folder(root, SESSION) / "seg-000000.kvs", "r+b") as file:
        os.pwrite(file.fileno(), b"\xff" * 64, 4096)
    sound, damaged = stat_store(root)
    assert (sound.session_id, sound.damage) == ("a", ())
    assert damaged.visible_unit_count is None
    assert damaged.block_count is None
    assert damaged.physical_bytes > 0
    assert len(damaged.damage) == 1
    assert "block 0" in damaged.damage[0]


def test_a_damaged_record_is_told_beside_what_the_blocks_hold(root: Path) -> None:
    create_session(root, RECORD)
    writer = open_writer(root)
    append(writer, 5)
    writer.flush()
    writer.close()
    (session_folder(root, SESSION) / "session.json").write_bytes(b"{}")
    stat = stat_session(root, SESSION)
    assert stat.state is None
    assert stat.visible_unit_count == 5
    assert "session.json" in stat.damage[0]


def test_what_was_dropped_is_not_what_is_there(root: Path) -> None:
    create_session(root, RECORD)
    writer = dropping_writer(root)
    append(writer, 200)
    writer.flush()
    stat = stat_session(root, SESSION)
    writer.close()
    first = stat.dropped_unit_count
    assert first is not None
    assert first > 50
    assert (stat.visible_unit_count, stat.first_pts_s) == (200, float(first))
    counts = [sample(index)[0].token_count for index in range(first, 200)]
    assert stat.token_count == sum(counts)
    assert stat.logical_bytes == sum(counts) * 2 * SMALL.layer_count * SMALL.token_bytes
    assert stat.covered_s == 199.5 - first


def test_damage_that_answers_have_met_is_known(root: Path) -> None:
    create_session(root, RECORD)
    writer = open_writer(root)
    append(writer, 5)
    writer.flush()
    writer.close()
    reader = SessionReader.open(root, SESSION)
    block_hash = reader.places[0].header.hash
    reader.close()
    found = DamagedSlice(
        block_hash=block_hash,
        block_index=0,
        unit_index=1,
        layer_index=0,
        unreadable=False,
        inode=1,
        changed_ns=1,
        found_unix_s=1.0,
    )
    Quarantine(root, SESSION).add([found])
    stat = stat_session(root, SESSION)
    assert stat.damaged_slice_count == 1
    assert stat.damage == (f"{SESSION}: 1 slices of 1 units, met by answers",)
    assert stat.visible_unit_count == 5
