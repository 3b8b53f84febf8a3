"""The store's benchmark reads what it says it reads, counts what it writes, and cleans up."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from kvstore.geometry import Geometry
from kvstore.paths import segment_path, session_folder
from svc.cli.bench.store_open import open_rows
from svc.cli.bench.store_session import (
    SLICE_BYTES,
    UNIT_BYTES,
    Noise,
    Question,
    write_session,
)
from svc.cli.bench.store_sizes import Sizes
from svc.cli.bench.store_visible import measure_delays
from svc.cli.bench.store_yardsticks import (
    BareReads,
    CheckedReads,
    DirectReads,
    Memcpy,
    bare_append_bytes_per_s,
    drop_cached,
    raw_append_bytes_per_s,
)
from tests.svc.cli.conftest import Lookback

bench = importlib.import_module("svc.cli.bench.store")  # by name, the package gives the command

SMALL = Geometry(layer_count=3, kv_head_count=1, head_dim=8, element="float16")


def test_a_unit_has_the_size_of_the_7b_models() -> None:
    assert (SLICE_BYTES, UNIT_BYTES) == (401_408, 11_239_424)


def test_a_question_reads_its_own_units_in_every_layer(tmp_path: Path) -> None:
    noise = Noise(SMALL, 5)
    write_session(tmp_path, "s", noise, 40)
    question = Question(tmp_path, "s", 6, 5)
    picks = list(question.picks(np.random.default_rng(0)))
    assert [len(set(units)) for units in picks] == [6, 6, 6]
    assert all(units == sorted(units) for units in picks)
    question.read(picks)
    for layer in (1, 2):  # the buffers hold the last two layers
        for kind in (0, 1):
            got = question._buffers[layer % 2, kind].reshape(6, 5, 1, 8)
            for place, unit in enumerate(picks[layer]):
                assert (got[place] == noise._arrays[unit % 2, kind, layer]).all()
    assert question.slice_count == 18
    assert question.byte_count == 18 * 2 * 5 * SMALL.token_bytes
    question.close()


def test_the_yardsticks_move_the_bytes_they_speak_of_and_leave_nothing(tmp_path: Path) -> None:
    for direct in (False, True):
        rate = raw_append_bytes_per_s(tmp_path, 5000, 2, writers=2, direct=direct)
        assert rate > 0
        assert list(tmp_path.iterdir()) == []
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(40 * 4096))
    drop_cached([path])
    reads = DirectReads([path], 8192, threads=2)
    assert reads.bytes_per_s(5 * 8192, np.random.default_rng(0)) > 0
    reads.close()
    checked = CheckedReads([path], 8192)
    assert checked.bytes_per_s(5 * 8192, np.random.default_rng(0)) > 0
    checked.close()
    assert bare_append_bytes_per_s(tmp_path, 8 * 4096, 2 * 4096, 2) > 0
    assert not (tmp_path / "bare").exists()
    bare = BareReads(path, 10)
    bare.read()
    bare.close()
    assert Memcpy(4096, 30).bytes_per_s(100 * 4096) > 0


def test_another_process_sees_every_unit(tmp_path: Path) -> None:
    delays = measure_delays(tmp_path, "s", 3)
    assert 0 < delays.appended_ms <= delays.called_ms
    assert delays.word_ms > 0
    assert not (tmp_path / "word").exists()


def test_it_says_how_much_it_writes_and_needs() -> None:
    sizes = Sizes(units=128, rounds=5)
    assert (sizes.append_blocks, sizes.session_blocks, sizes.append_rounds) == (16, 4, 5)
    assert sizes.written_bytes == 128 * UNIT_BYTES + 5 * 5 * 48 * 4 * UNIT_BYTES
    assert sizes.needed_bytes < 6e9


def test_without_room_it_says_what_it_needs(
    lookback: type[Lookback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svc.cli.bench.store_sizes._RESERVE_BYTES", 1 << 60)
    outcome = lookback.run("bench", "store", "--dir", str(tmp_path))
    assert outcome.status == 1
    assert outcome.err.startswith("error: NO_ROOM: ")
    assert list(tmp_path.iterdir()) == []


def test_small_units_lie_in_one_segment(tmp_path: Path) -> None:
    """The bare reads of the overhead row are of its first bytes."""
    write_session(tmp_path, "s", Noise(bench._SMALL, 1), 64)
    path = segment_path(session_folder(tmp_path, "s"), 0)
    assert path.stat().st_size > 64 * bench._SMALL.layer_count


def test_what_an_open_session_takes_is_counted_without_its_tables(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, 1024)
    baselines = [row.baseline for row in rows]
    assert baselines == [168, 168, 1072, 1072]  # 64 a row, 8 a layer, 4 a token
    values = [row.value for row in rows]
    assert all(42 < value < 168 for value in (values[0], values[2]))
    for alone, with_tier, layers in ((*values[:2], 5), (*values[2:], 28)):
        assert 0.9 * 8 * layers < with_tier - alone < 1.3 * 8 * layers
