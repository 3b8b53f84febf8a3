"""Answers out of a real store and index: no leak of the future, same answer from every tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvstore.encoding import Encoding
from kvstore.errors import SnapshotExpiredError
from kvstore.geometry import Geometry, Tier
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from kvstore.unit import Unit
from kvstore.writer import SessionWriter
from retrieval.errors import EpochChangedError
from retrieval.index import KeyIndexReader
from retrieval.index_writer import KeyIndexWriter
from retrieval.query import Pooling
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest, Retrieval
from svc.engine.answer_result import AnswerResult
from svc.engine.encoder import StreamEncoder, UnitEmbeds
from svc.engine.key_rows import key_index_path, open_key_index
from svc.engine.model import LoadedModel
from svc.engine.store_memory import StoreMemory
from svc.engine.stored_kv import to_stored
from svc.engine.unit_rows import UnitRows
from svc.engine.window import WindowConfig
from tests.svc.engine import streams
from tests.svc.engine.answer_world import (
    QUESTION,
    ListMemory,
    LogitsTap,
    StoredUnit,
    answer,
    cells_of,
    finish,
)

LoadTiny = Callable[[str], LoadedModel]
WINDOW = WindowConfig(window_tokens=20, window_positions=30)
SESSION = "street"


class StoredSession:
    """A session being written, and read as another process would read it."""

    def __init__(
        self,
        root: Path,
        model: LoadedModel,
        limits: BlockLimits | None = None,
        hot_tail_bytes: int | None = None,
        encoding: Encoding = "model",
    ) -> None:
        self._encoding: Encoding = encoding
        self._hot_tail_bytes = hot_tail_bytes
        self._limits = limits or BlockLimits(block_tokens=25, min_free_bytes=0)
        self._root = root
        self._model = model
        self.geometry = Geometry(
            layer_count=model.layer_count,
            kv_head_count=model.kv_head_count,
            head_dim=model.head_dim,
            element=model.element,
        )
        self._encoder = StreamEncoder(model, WINDOW)
        self.units: list[StoredUnit] = []
        self.open()

    def open(self) -> None:
        self._writer = SessionWriter.open(
            self._root,
            SESSION,
            geometry=self.geometry,
            encoding=self._encoding,
            limits=self._limits,
            hot_tail_bytes=self._hot_tail_bytes,
        )
        self.reader = SessionReader.open(self._root, SESSION)
        self._make_row = UnitRows(self.geometry, all_places=False)
        self._rows: KeyIndexWriter = open_key_index(
            self._root, self.reader, self.reader.snapshot(), self._make_row
        )
        self.index = KeyIndexReader.open(key_index_path(self._root, SESSION))

    def push(self, units: Sequence[UnitEmbeds]) -> None:
        """Encode units one by one and make them visible."""
        for unit in units:
            (kv,) = self._encoder.encode([unit])
            self.units.append(StoredUnit(kv, unit.positions.numpy(), unit.position_span))
            index = len(self.units) - 1
            cells = cells_of(unit.positions.numpy())
            self._writer.append(
                Unit(
                    index=index,
                    first_pts_s=float(index),
                    last_pts_s=float(index),
                    token_count=len(unit.positions),
                    position_span=unit.position_span,
                    cells=cells,
                    drop_fraction=1 - len(unit.positions) / unit.position_span,
                    gap_before=False,
                    thumbnail_jpeg=b"",
                ),
                to_stored(kv.keys),
                to_stored(kv.values),
                resume=b"",
            )
            self._rows.append(self._make_row.of(cells, to_stored(kv.keys)))
            self._writer.publish()

    def crash(self) -> None:
        """End the writer without a flush, and come back as a new one."""
        self._writer.close()
        self._rows.close()
        del self.units[self._writer.durable_unit_count :]

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._rows.close()
        self._writer.close()
        self.index.close()
        self.reader.close()

    def memory(self, snapshot: Snapshot | None = None) -> StoreMemory:
        return StoreMemory(self._model, self.reader, self.index, snapshot or self.reader.snapshot())


@contextmanager
def stored(
    root: Path,
    model: LoadedModel,
    limits: BlockLimits | None = None,
    hot_tail_bytes: int | None = None,
    encoding: Encoding = "model",
) -> Iterator[StoredSession]:
    session = StoredSession(root, model, limits, hot_tail_bytes, encoding)
    try:
        yield session
    finally:
        session.close()


def request(**fields: Any) -> AnswerRequest:
    defaults = {
        "question": QUESTION,
        "unit_count": 3,
        "temperature": 0.0,
        "max_new_tokens": 6,
        "ignore_eos": True,
    }
    return AnswerRequest(**(defaults | fields))


def answer_with_logits(
    model: LoadedModel, own: AnswerRequest, memory: StoreMemory
) -> tuple[AnswerResult, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        tap = LogitsTap(model, patch)
        return answer(model, own, memory), tap.rows


def assert_same_to_the_bit(
    one: tuple[AnswerResult, Tensor], other: tuple[AnswerResult, Tensor]
) -> None:
    assert torch.equal(one[1], other[1])
    assert one[0].token_ids == other[0].token_ids
    assert one[0].text == other[0].text
    for own, its in zip(one[0].layer_units, other[0].layer_units, strict=True):
        assert own.tolist() == its.tolist()
    np.testing.assert_array_equal(one[0].unit_scores, other[0].unit_scores)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("make_units", [streams.full_units, streams.ragged_units])
def test_a_stored_unit_is_read_as_it_was_encoded(
    dtype: str, make_units: Any, tiny_model: LoadTiny, tmp_path: Path
) -> None:
    model = tiny_model(dtype)
    with stored(tmp_path, model) as session:
        session.push(make_units(model, 9))
        memory, expected = session.memory(), ListMemory(session.units)
        assert memory.token_counts.tolist() == expected.token_counts.tolist()
        assert memory.position_spans.tolist() == expected.position_spans.tolist()
        chosen = np.array([0, 3, 4, 8])
        assert memory.cells(chosen).tolist() == expected.cells(chosen).tolist()
        query = np.random.default_rng(0).standard_normal(32, dtype=np.float32)
        for layer in range(model.layer_count):
            keys, values = memory.load(layer, chosen)
            expected_keys, expected_values = expected.load(layer, chosen)
            assert torch.equal(keys, expected_keys)
            assert torch.equal(values, expected_values)
            np.testing.assert_allclose(
                memory.scores(layer, query), expected.scores(layer, query), atol=1e-4
            )
        assert set(memory.tiers) == set(chosen.tolist())


@pytest.mark.parametrize(
    "own",
    [
        request(),
        request(retrieval="shared"),
        request(retrieval="agreed", pooling="mean_and_tokens"),
    ],
    ids=["each", "shared", "agreed"],
)
@pytest.mark.parametrize("make_units", [streams.full_units, streams.ragged_units])
def test_live_at_t_equals_as_of_t_later(
    own: AnswerRequest, make_units: Any, tiny_model: LoadTiny, tmp_path: Path
) -> None:
    model = tiny_model("float32")
    units = make_units(model, 14)
    with stored(tmp_path, model) as session:
        live = []
        for start in range(0, 14, 2):
            session.push(units[start : start + 2])
            live.append(answer_with_logits(model, own, session.memory()))
        session.flush()
        for count, then in zip(range(2, 15, 2), live, strict=True):
            snapshot = session.reader.snapshot().cut(count)
            later = answer_with_logits(model, own, session.memory(snapshot))
            assert_same_to_the_bit(then, later)


def test_the_tier_makes_no_difference(tiny_model: LoadTiny, tmp_path: Path) -> None:
    model = tiny_model("float32")
    with stored(tmp_path, model) as session:
        session.push(streams.full_units(model, 8))
        hot = answer_with_logits(model, request(), session.memory())
        session.flush()
        session.close()
        session.reader = SessionReader.open(tmp_path, SESSION)
        session.index = KeyIndexReader.open(key_index_path(tmp_path, SESSION))
        cold = answer_with_logits(model, request(), session.memory())
        assert_same_to_the_bit(hot, cold)
        assert set(hot[0].tiers.values()) == {Tier.HOT}
        assert set(cold[0].tiers.values()) == {Tier.DISK}


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    count=st.integers(1, 8),
    later=st.integers(1, 5),
    recent=st.integers(0, 2),
    retrieval=st.sampled_from(get_args(Retrieval)),
    pooling=st.sampled_from(get_args(Pooling)),
    seed=st.integers(0, 99),
)
def test_what_comes_after_the_snapshot_never_reaches_the_answer(
    count: int,
    later: int,
    recent: int,
    retrieval: Retrieval,
    pooling: Pooling,
    seed: int,
    tiny_model: LoadTiny,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = tiny_model("float32")
    units = streams.full_units(model, 14)
    own = request(
        recent_unit_count=recent,
        retrieval=retrieval,
        pooling=pooling,
        temperature=1.0,
        seed=seed,
    )
    answers = []
    for future in (units[-later:], units[count : count + later]):
        with stored(tmp_path_factory.mktemp("root"), model) as session:
            session.push([*units[:count], *future])
            snapshot = session.reader.snapshot().cut(count)
            answers.append(answer_with_logits(model, own, session.memory(snapshot)))
    assert_same_to_the_bit(answers[0], answers[1])


def test_a_snapshot_from_before_a_crash_ends_its_answers_and_no_others(
    tiny_model: LoadTiny, tmp_path: Path
) -> None:
    model = tiny_model("float32")
    engine = AnswerEngine(model)
    with stored(tmp_path, model) as session:
        session.push(streams.full_units(model, 7))
        before, reader, index = session.reader.snapshot(), session.reader, session.index
        assert 0 < before.durable_unit_count < 7
        old = engine.start(request(), session.memory())
        session.crash()
        session.open()
        new = engine.start(request(unit_count=2), session.memory())
        engine.step([old, new])
        assert isinstance(old.error, EpochChangedError | SnapshotExpiredError)
        finish(engine, new)
        assert new.result is not None
        assert new.result.snapshot_unit_count == before.durable_unit_count
        with pytest.raises(EpochChangedError):
            StoreMemory(model, reader, session.index, before)
        with pytest.raises(EpochChangedError):
            StoreMemory(model, session.reader, index, session.reader.snapshot())
        reader.close()
        index.close()


@pytest.mark.parametrize("damage", ["lost", "cut short", "row flipped"])
def test_a_damaged_index_is_made_anew_and_answers_are_the_same(
    damage: str, tiny_model: LoadTiny, tmp_path: Path
) -> None:
    model = tiny_model("float32")
    path = key_index_path(tmp_path, SESSION)
    with stored(tmp_path, model) as session:
        session.push(streams.full_units(model, 8))
        session.flush()
        before = answer(model, request(), session.memory())
        session.close()
        data = bytearray(path.read_bytes())
        if damage == "lost":
            path.unlink()
        elif damage == "cut short":
            path.write_bytes(data[:5000])
        else:
            data[4096 + 40] ^= 1
            path.write_bytes(data)
        session.open()
        after = answer(model, request(), session.memory())
        assert after.token_ids == before.token_ids
        np.testing.assert_allclose(after.unit_scores, before.unit_scores, atol=1e-6)
