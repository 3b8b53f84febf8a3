"""Clocks that jump back and forth while a session forgets what is old."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvstore import freeing
from kvstore.reader import SessionReader
from tests.faults.ledger import Ledger, Line
from tests.kvstore.samples import (
    FAST_FOLDER,
    LIMITS,
    SESSION,
    kill,
    open_writer,
    read_unit,
    resume_blob,
    sample,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_RETAIN_S = 64.0
_KEEPING = replace(LIMITS, retain_s=_RETAIN_S, preallocate_bytes=4096)
_JUMPS_S = (1e9, -1e9, 3600.0, -3600.0, 70.0, -70.0)


class _Life:
    """A session of which one clock, the wall's or the stream's, is not to be trusted."""

    def __init__(
        self, root: Path, insane: str, rng: random.Random, set_wall: Callable[[float], None]
    ) -> None:
        self._root, self._insane, self._rng, self._set_wall = root, insane, rng, set_wall
        self._sane_s = 0.0
        self._offset_s = 1.7e9
        self._born_s: list[float] = []
        """By the clock that is right."""
        self._pts_s = 0.0
        self._writer = open_writer(root, limits=_KEEPING)

    def go_on(self, line: Line) -> None:
        """Jump, append for a while, perhaps die, and look at what is left."""
        jump_s = self._rng.choice(_JUMPS_S)
        # A stream's times never go back: what would is refused before the store.
        self._offset_s += abs(jump_s) if self._insane == "stream" else jump_s
        line.fault_count += 1
        for _ in range(self._rng.randrange(5, 30)):
            self._append()
        self._writer.flush()
        count = self._writer.durable_unit_count
        line.acknowledged_count += count
        if self._rng.random() < 0.3:
            kill(self._writer)
            self._writer = open_writer(self._root, limits=_KEEPING)
            assert self._writer.durable_unit_count == count
        self._look(count, line)

    def _append(self) -> None:
        self._sane_s += 1.0
        distrusted_s = self._sane_s + self._offset_s
        pts_s, wall_s = self._sane_s, distrusted_s
        if self._insane == "stream":
            pts_s, wall_s = distrusted_s, self._sane_s + 1.7e9
        self._set_wall(wall_s)
        index = self._writer.visible_unit_count
        unit, keys, values = sample(index)
        unit = replace(unit, first_pts_s=pts_s, last_pts_s=pts_s)
        self._writer.append(unit, keys, values, resume=resume_blob(index))
        self._writer.publish()
        self._born_s.append(self._sane_s)

    def _look(self, count: int, line: Line) -> None:
        reader = SessionReader.open(self._root, SESSION)
        snapshot = reader.snapshot()
        assert snapshot.unit_count == count
        first = snapshot.first_unit
        if first:
            assert self._sane_s - self._born_s[first - 1] > _RETAIN_S, "a young unit was forgotten"
        for index in range(first, count):
            _, keys, values = sample(index)
            for layer in range(2):
                got_keys, got_values, _ = read_unit(reader, snapshot, index, layer)
                assert got_keys.tobytes() == keys[layer].tobytes()
                assert got_values.tobytes() == values[layer].tobytes()
            line.checked_count += 1
        reader.close()

    def end(self) -> None:
        """Close the session."""
        self._writer.close()


def _live(insane: str, count: int, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(count):
        wall = [1.7e9]
        monkeypatch.setattr("kvstore.blocklog.time.time", lambda wall=wall: wall[0])

        def set_wall(now_s: float, wall: list[float] = wall) -> None:
            wall[0] = now_s

        with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as root:
            life = _Life(Path(root), insane, random.Random(seed), set_wall)
            for _ in range(20):
                life.go_on(line)
            life.end()


@pytest.mark.parametrize("insane", ["wall", "stream"])
def test_no_jump_of_one_clock_costs_a_unit_that_is_young_by_the_other(
    ledger: Ledger, insane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.line(f"jumps of the {insane} clock") as line:
        _live(insane, 10, line, monkeypatch)


@pytest.mark.parametrize("insane", ["wall", "stream"])
def test_a_store_that_believes_one_clock_is_caught(
    insane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = freeing.aged
    believed = "now_unix_s" if insane == "stream" else "newest_pts_s"

    def careless(segments: Any, **ages: Any) -> Any:
        return real(segments, **(ages | {believed: 1e18}))

    monkeypatch.setattr(freeing, "aged", careless)
    with pytest.raises(AssertionError, match="a young unit was forgotten"):
        _live(insane, 10, Line("mutant"), monkeypatch)
