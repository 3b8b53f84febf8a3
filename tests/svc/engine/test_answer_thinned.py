"""Answers from thinned units are those of the reduced sequence, and say that they are coarser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from kvstore.budget import DiskBudget
from kvstore.errors import KVStoreError
from kvstore.limits import BlockLimits
from kvstore.snapshot import Snapshot
from retrieval.index import KeyIndexReader
from retrieval.index_file import IndexLayout
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.index_repair import repair_index
from svc.engine.key_rows import key_index_path
from svc.engine.layout import Cells, grid_cells
from svc.engine.memory import Memory
from svc.engine.model import LoadedModel
from svc.engine.store_memory import StoreMemory
from svc.engine.window_cache import UnitKV
from tests.svc.engine import streams
from tests.svc.engine.answer_world import (
    QUESTION,
    ListMemory,
    LogitsTap,
    StoredUnit,
    answer,
    finish,
    stock_model,
)
from tests.svc.engine.dense_answer import dense_answer
from tests.svc.engine.test_answer_store import SESSION, StoredSession, stored

LoadTiny = Callable[[str], LoadedModel]
PUSHED = 130
ASKED = (0, 3, 40, 41, PUSHED - 1)
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def model(tiny_model: LoadTiny) -> LoadedModel:
    return tiny_model("float32")


def request(**fields: Any) -> AnswerRequest:
    defaults: dict[str, Any] = {
        "question": QUESTION,
        "temperature": 0.0,
        "max_new_tokens": 4,
        "unit_count": 5,
        "ignore_eos": True,
    }
    return AnswerRequest(**(defaults | fields))


def thinning(model: LoadedModel) -> BlockLimits:
    """Room for the index and a few large blocks."""
    row_dim = model.kv_head_count * model.head_dim
    index = IndexLayout(layer_count=model.layer_count, dim=row_dim, chunk_row_count=1024)
    block_bytes = 225 * 2 * row_dim * model.layer_count * 4 + (20 << 10)
    budget = DiskBudget(session_bytes=index.chunk_bytes + 6 * block_bytes, on_full="thin")
    return BlockLimits(
        block_tokens=225,
        block_span_s=1e9,
        preallocate_bytes=4096,
        min_free_bytes=0,
        budget=replace(budget, high_fraction=0.85, low_fraction=0.8),
    )


@pytest.fixture
def session(model: LoadedModel, tmp_path: Path) -> Iterator[StoredSession]:
    """A session that was thinned."""
    with stored(tmp_path, model, thinning(model), hot_tail_bytes=1 << 20) as found:
        found.push(streams.full_units(model, PUSHED))
        yield found


def reduced(session: StoredSession, model: LoadedModel, snapshot: Snapshot) -> list[StoredUnit]:
    """The units that were pushed, without the tokens that the store let go of."""
    left = []
    for index, unit in enumerate(session.units[: snapshot.unit_count]):
        cells = {tuple(cell) for cell in session.reader.cells(snapshot, index).tolist()}
        kept = [at for at, cell in enumerate(grid_cells((3, 3)).tolist()) if tuple(cell) in cells]
        kv = UnitKV(keys=unit.kv.keys[:, kept], values=unit.kv.values[:, kept])
        left.append(StoredUnit(kv, unit.positions[kept], unit.span))
    return left


class ReducedMemory(ListMemory):
    """The independent reference: reduced units, found by the mean keys that they had."""

    def __init__(self, units: list[StoredUnit], whole: list[StoredUnit]) -> None:
        super().__init__(units)
        self._whole = ListMemory(whole)

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._whole.scores(layer, query)


def with_logits(
    model: LoadedModel, own: AnswerRequest, memory: Memory
) -> tuple[AnswerResult, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        tap = LogitsTap(model, patch)
        return answer(model, own, memory), tap.rows


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("retrieval", ["per_layer", "shared"])
def test_an_answer_is_that_of_the_reduced_sequence(
    model: LoadedModel, session: StoredSession, retrieval: Any
) -> None:
    snapshot = session.reader.snapshot()
    assert snapshot.coarsened.sum() > 40
    got, logits = with_logits(model, request(retrieval=retrieval), session.memory(snapshot))
    units = reduced(session, model, snapshot)
    expected, expected_logits = with_logits(
        model, request(retrieval=retrieval), ReducedMemory(units, session.units)
    )
    assert got.token_ids == expected.token_ids
    assert [chosen.tolist() for chosen in got.layer_units] == [
        chosen.tolist() for chosen in expected.layer_units
    ]
    assert far(logits, expected_logits) < TOLERANCE
    read = {int(unit) for chosen in got.layer_units for unit in chosen}
    coarsened = sorted(unit for unit in read if snapshot.coarsened[unit])
    assert coarsened
    assert got.coarsened == tuple(coarsened)
    assert got.context_token_count == max(
        int(snapshot.token_counts[chosen].sum()) for chosen in got.layer_units
    )


def test_it_is_the_stock_models_over_a_cache_with_explicit_positions(
    model: LoadedModel, session: StoredSession, tiny_path: Path
) -> None:
    snapshot = session.reader.snapshot()
    units = reduced(session, model, snapshot)
    assert min(len(units[unit].positions) for unit in ASKED) < model.adapter.tokens_per_unit
    result, logits = with_logits(model, request(unit_indices=ASKED), session.memory(snapshot))
    stock = stock_model(tiny_path, "float32")
    text_model = stock.get_decoder()
    cache = DynamicCache(config=text_model.config)
    places, start = [torch.arange(model.prefix.token_count)], model.prefix.token_count
    for unit in ASKED:
        places.append(torch.from_numpy(units[unit].positions) + start)
        start += units[unit].span
    for layer in range(model.layer_count):
        kept = [units[unit].kv for unit in ASKED]
        keys = [model.prefix.keys[layer], *(kv.keys[layer].transpose(0, 1) for kv in kept)]
        values = [model.prefix.values[layer], *(kv.values[layer].transpose(0, 1) for kv in kept)]
        joined = torch.cat(keys, dim=1)[None]
        tables = model.decoder.rope.tables(torch.cat(places), joined)
        cache.update(
            model.decoder.rope.apply(joined, tables), torch.cat(values, dim=1)[None], layer
        )
    embeds = model.adapter.question_embeds(model.prompt.question(QUESTION).token_ids)[None]
    for step, token_id in enumerate(result.token_ids):
        at = torch.arange(start, start + embeds.shape[1])[None]
        with torch.inference_mode():
            hidden = text_model(
                inputs_embeds=embeds, position_ids=at, past_key_values=cache
            ).last_hidden_state
            expected = stock.lm_head(hidden[0, -1:])
        assert far(logits[step : step + 1], expected) < TOLERANCE
        start += embeds.shape[1]
        embeds = model.decoder.embed([token_id])[None]


class ThinsMeanwhile(StoreMemory):
    """A memory of a session that is thinned before a layer is read."""

    def __init__(self, session: StoredSession, before_layer: int) -> None:
        super().__init__(session._model, session.reader, session.index, session.reader.snapshot())
        self._session = session
        self._before_layer = before_layer
        self.whole = reduced(session, session._model, self._snapshot)

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        if layer == self._before_layer:
            self._before_layer = -1
            self._session.push(streams.full_units(self._session._model, 60))
            self._session.reader.snapshot()  # another question's
        return super().load(layer, units)


def thinned_in_the_middle(
    model: LoadedModel, session: StoredSession, before_layer: int
) -> tuple[AnswerResult, Tensor, Tensor]:
    """The answer, its logits, and the reference's: whole units in the layers before."""
    memory = ThinsMeanwhile(session, before_layer)
    result, logits = with_logits(model, request(unit_indices=ASKED), memory)
    after = reduced(session, model, session.reader.snapshot())
    assert sum(len(memory.whole[u].positions) for u in ASKED) > sum(
        len(after[u].positions) for u in ASKED
    )
    units = [*memory.whole, *after]

    def choose(layer: int, scores: Tensor) -> list[int]:
        return [unit + (len(memory.whole) if layer >= before_layer else 0) for unit in ASKED]

    reference = dense_answer(model, units, QUESTION, result.token_ids, choose)
    totals = [
        sum(len(units[u].positions) for u in choose(layer, logits))
        for layer in range(model.layer_count)
    ]
    assert result.context_token_count == max(totals)
    return result, logits, reference.logits


@pytest.mark.parametrize("before_layer", [0, 1, 2])
def test_units_that_are_thinned_under_a_question_are_read_as_they_are_then(
    model: LoadedModel, session: StoredSession, before_layer: int
) -> None:
    result, logits, expected = thinned_in_the_middle(model, session, before_layer)
    assert far(logits, expected) < TOLERANCE
    assert set(result.coarsened) >= {3, 40, 41}


def test_a_layer_that_keeps_the_old_places_is_caught(
    model: LoadedModel, session: StoredSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant reads the new tokens, and puts them where the old ones lay."""

    def first_places(self: Any, units: NDArray[np.int64]) -> Cells:
        counts = self.token_counts[units]
        return np.concatenate([grid_cells((3, 3))[:count] for count in counts.tolist()])

    monkeypatch.setattr(StoreMemory, "cells", first_places)
    _, logits, expected = thinned_in_the_middle(model, session, 1)
    assert far(logits, expected) > 10 * TOLERANCE


def test_an_error_that_is_not_about_thinning_still_ends_the_answer(
    model: LoadedModel, session: StoredSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise KVStoreError("gone")

    monkeypatch.setattr(StoreMemory, "load", gone)
    engine = AnswerEngine(model)
    waiting = engine.start(request(), session.memory())
    finish(engine, waiting)
    assert isinstance(waiting.error, KVStoreError)


def test_a_new_index_of_a_thinned_session_is_the_old_one(
    model: LoadedModel, session: StoredSession, tmp_path: Path
) -> None:
    session.flush()
    path = key_index_path(tmp_path, SESSION)

    def rows() -> NDArray[np.float32]:
        index = KeyIndexReader.open(path)
        unit_vectors = np.eye(index.dim, dtype=np.float32)
        found = [
            [index.scores(layer, vector, PUSHED) for vector in unit_vectors]
            for layer in range(model.layer_count)
        ]
        index.close()
        return np.array(found)

    before = rows()
    assert session.reader.snapshot().coarsened.any()
    session.close()
    path.unlink()
    assert repair_index(tmp_path, SESSION, limits=BlockLimits(min_free_bytes=0)) == PUSHED
    assert np.array_equal(rows(), before)
    session.open()
