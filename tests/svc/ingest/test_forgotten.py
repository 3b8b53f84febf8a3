"""What a session says of itself once its oldest units were dropped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.budget import DiskBudget
from kvstore.reader import SessionReader
from svc.ingest.stats import StatsReader
from tests.kvstore.samples import FAST_FOLDER, LIMITS, SESSION, append, open_writer, sample


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        yield Path(folder)


def test_stats_count_what_is_left_and_tell_what_was_dropped(root: Path) -> None:
    budget = DiskBudget(session_bytes=600 * 1024, on_full="drop_oldest")
    writer = open_writer(root, limits=replace(LIMITS, budget=budget, preallocate_bytes=4096))
    reader = StatsReader(root)
    append(writer, 20)
    writer.flush()
    assert reader.read(SESSION, 1.0).dropped_unit_count == 0
    append(writer, 180)
    writer.flush()
    fresh = SessionReader.open(root, SESSION)
    first = fresh.snapshot().first_unit
    fresh.close()
    assert 20 < first < 200
    for stats in (reader.read(SESSION, 1.0), reader.read(SESSION, 1.0)):  # the second is kept
        assert stats.dropped_unit_count == first
        assert stats.visible_unit_count == stats.durable_unit_count == 200 - first
        assert stats.first_pts_s == float(first)
        assert stats.last_visible_pts_s == stats.last_durable_pts_s == 199.5
        left = [sample(index)[0] for index in range(first, 200)]
        assert stats.token_count == sum(unit.token_count for unit in left)
        assert stats.gap_count == sum(unit.gap_before for unit in left)
    writer.close()
