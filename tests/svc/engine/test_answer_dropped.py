"""What was dropped from the store is never chosen, and answers are as if it had never been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.budget import DiskBudget
from kvstore.errors import UnitDroppedError
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from retrieval.index import KeyIndexReader
from retrieval.index_file import IndexLayout
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest, NothingVisibleError, RequestError
from svc.engine.index_repair import repair_index
from svc.engine.key_rows import key_index_path
from svc.engine.model import LoadedModel
from svc.engine.store_memory import StoreMemory
from tests.svc.engine import streams
from tests.svc.engine.answer_world import QUESTION, ListMemory, answer, encode, finish
from tests.svc.engine.test_answer_store import SESSION, stored

LoadTiny = Callable[[str], LoadedModel]
UNIT_COUNT = 9
DROPPED = 4


@pytest.fixture(scope="module")
def model(tiny_model: LoadTiny) -> LoadedModel:
    return tiny_model("float32")


@pytest.fixture(scope="module")
def memory(model: LoadedModel) -> ListMemory:
    return ListMemory(encode(model, streams.ragged_units(model, UNIT_COUNT)))


def request(**fields: Any) -> AnswerRequest:
    defaults: dict[str, Any] = {
        "question": QUESTION,
        "temperature": 0.0,
        "max_new_tokens": 4,
        "unit_count": 4,
        "ignore_eos": True,
    }
    return AnswerRequest(**(defaults | fields))


@pytest.mark.parametrize("retrieval", ["per_layer", "shared", "agreed"])
@pytest.mark.parametrize("unit_count", [1, 3, 100])
@pytest.mark.parametrize("recent_unit_count", [0, 1])
def test_an_answer_is_as_if_dropped_units_had_never_been(
    model: LoadedModel,
    memory: ListMemory,
    retrieval: Any,
    unit_count: int,
    recent_unit_count: int,
) -> None:
    own = request(retrieval=retrieval, unit_count=unit_count, recent_unit_count=recent_unit_count)
    got = answer(model, own, ListMemory(memory.units, first_unit=DROPPED))
    expected = answer(model, own, ListMemory(memory.units[DROPPED:]))
    assert got.token_ids == expected.token_ids
    assert [units.tolist() for units in got.layer_units] == [
        (units + DROPPED).tolist() for units in expected.layer_units
    ]
    assert not got.unit_scores[:DROPPED].any()
    np.testing.assert_allclose(got.unit_scores[DROPPED:], expected.unit_scores)
    assert not got.lost


def test_a_dropped_unit_cannot_be_asked_for(model: LoadedModel, memory: ListMemory) -> None:
    left = ListMemory(memory.units, first_unit=DROPPED)
    with pytest.raises(RequestError, match=rf"\[{DROPPED}, {UNIT_COUNT}\)"):
        answer(model, request(unit_indices=(DROPPED - 1, DROPPED)), left)
    answer(model, request(unit_indices=(DROPPED,)), left)


def test_a_snapshot_of_which_all_was_dropped_has_nothing_to_see(
    model: LoadedModel, memory: ListMemory
) -> None:
    with pytest.raises(NothingVisibleError):
        answer(model, request(), ListMemory(memory.units, first_unit=UNIT_COUNT))


def dropping(model: LoadedModel) -> BlockLimits:
    """Room for the index and some blocks."""
    row_dim = model.kv_head_count * model.head_dim
    index = IndexLayout(layer_count=model.layer_count, dim=row_dim, chunk_row_count=1024)
    budget = DiskBudget(session_bytes=index.chunk_bytes + 400 * 1024, on_full="drop_oldest")
    return BlockLimits(
        block_tokens=25,
        segment_bytes=4096,
        preallocate_bytes=4096,
        min_free_bytes=0,
        budget=replace(budget, high_fraction=1.0, low_fraction=0.95),
    )


def test_a_stored_session_answers_from_what_is_left_and_so_does_a_new_index(
    model: LoadedModel, tmp_path: Path
) -> None:
    units = streams.ragged_units(model, 80)
    with stored(tmp_path, model, dropping(model)) as session:
        session.push(units)
        session.flush()
        first_unit = session.reader.snapshot().first_unit
        assert 5 < first_unit < 75
        got = answer(model, request(unit_count=5), session.memory())
        left = ListMemory(session.units, first_unit=first_unit)
        assert got.token_ids == answer(model, request(unit_count=5), left).token_ids
        assert min(int(units.min()) for units in got.layer_units) >= first_unit
    key_index_path(tmp_path, SESSION).unlink()
    row_count = repair_index(tmp_path, SESSION, limits=dropping(model))
    assert row_count == 80
    reader = SessionReader.open(tmp_path, SESSION)
    index = KeyIndexReader.open(key_index_path(tmp_path, SESSION))
    again = answer(
        model, request(unit_count=5), StoreMemory(model, reader, index, reader.snapshot())
    )
    assert again.token_ids == got.token_ids
    assert [units.tolist() for units in again.layer_units] == [
        units.tolist() for units in got.layer_units
    ]
    index.close()
    reader.close()


def test_units_that_are_dropped_under_a_question_end_it_with_their_name(
    model: LoadedModel, tmp_path: Path
) -> None:
    units = streams.ragged_units(model, 200)
    with stored(tmp_path, model, dropping(model), hot_tail_bytes=64 * 1024) as session:
        session.push(units[:30])
        session.flush()
        engine = AnswerEngine(model)
        waiting = engine.start(request(unit_indices=(0, 1, 29)), session.memory())
        session.push(units[30:])
        assert session.reader.snapshot().first_unit > 1
        finish(engine, waiting)
        assert isinstance(waiting.error, UnitDroppedError)
        assert waiting.error.unit_index == 0
