"""Answers against transformers' own generate, its own attention, and a dense reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from svc.engine import context
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.attention import core
from svc.engine.encoder import UnitEmbeds
from svc.engine.model import LoadedModel
from svc.engine.window import WindowConfig
from tests.svc.engine import streams
from tests.svc.engine.answer_world import (
    DTYPES,
    QUESTION,
    TOLERANCE,
    ListMemory,
    LogitsTap,
    StoredUnit,
    TinyLayout,
    answer,
    encode,
    stock_inputs,
    stock_model,
)
from tests.svc.engine.dense_answer import DenseAnswer, dense_answer

LoadTiny = Callable[[str], LoadedModel]
FRAMES, STEPS = 7, 10
WINDOW = WindowConfig(window_tokens=20, window_positions=30)
ALL = 10_000


def request(**fields: Any) -> AnswerRequest:
    defaults: dict[str, Any] = {
        "question": QUESTION,
        "unit_count": ALL,
        "recent_unit_count": 1,
        "newest_whole": False,
        "max_new_tokens": STEPS,
        "temperature": 0.0,
        "ignore_eos": True,
    }
    return AnswerRequest(**(defaults | fields))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retrieval", ["per_layer", "shared"])
def test_everything_seen_and_retrieved_equals_stock_generate(
    dtype: str,
    retrieval: str,
    tiny_model: LoadTiny,
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(dtype)
    units = encode(model, streams.full_units(model, FRAMES))
    tap = LogitsTap(model, monkeypatch)
    result = answer(model, request(retrieval=retrieval), ListMemory(units))
    stock = stock_model(tiny_path, dtype)
    expected = stock.generate(
        **stock_inputs(model, FRAMES, QUESTION),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=[],
        return_dict_in_generate=True,
        output_logits=True,
    )
    new_ids = expected.sequences[0, -STEPS:].tolist()
    assert list(result.token_ids) == new_ids
    assert difference(tap.rows[-STEPS:], torch.cat(expected.logits)) < TOLERANCE[dtype]
    assert result.prompt_token_count == expected.sequences.shape[1] - STEPS


def difference(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max())


MakeUnits = Callable[[LoadedModel, int], Sequence[UnitEmbeds]]


def answer_and_reference(
    model: LoadedModel, make_units: MakeUnits, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> tuple[AnswerResult, Tensor, list[StoredUnit], DenseAnswer]:
    """Return the engine's answer with its logits, and the reference's, units given by it."""
    units = encode(model, make_units(model, 12), WINDOW)
    with monkeypatch.context() as patch:
        tap = LogitsTap(model, patch)
        result = answer(model, request(**fields), ListMemory(units))
    chosen = [layer.tolist() for layer in result.layer_units]
    reference = dense_answer(
        model, units, QUESTION, result.token_ids, lambda layer, scores: chosen[layer]
    )
    return result, tap.rows, units, reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retrieval", ["per_layer", "shared", "agreed"])
@pytest.mark.parametrize("make_units", [streams.full_units, streams.ragged_units])
def test_subsets_of_units_equal_a_dense_reference(
    dtype: str,
    retrieval: str,
    make_units: MakeUnits,
    tiny_model: LoadTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(dtype)
    result, logits, _, reference = answer_and_reference(
        model, make_units, monkeypatch, unit_count=4, retrieval=retrieval
    )
    assert difference(logits[-STEPS:], reference.logits) < TOLERANCE[dtype]
    assert reference.logits.argmax(-1).tolist() == list(result.token_ids)
    different = {tuple(units.tolist()) for units in result.layer_units}
    assert (len(different) > 1) == (retrieval == "per_layer"), "or the test shows little"


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_each_layer_the_question_follows_that_layers_own_units(
    dtype: str, tiny_model: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, logits, units, reference = answer_and_reference(
        tiny_model(dtype), streams.ragged_units, monkeypatch, token_count=28
    )
    spans = {sum(units[unit].span for unit in layer) for layer in reference.layer_units}
    assert len(spans) > 1, "or every question starts at the same place"
    assert difference(logits, reference.logits) < TOLERANCE[dtype]
    assert result.context_token_count <= 28


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_units", [streams.full_units, streams.ragged_units])
def test_every_layer_reads_the_newest_unit_and_the_best_by_rekvs_score(
    dtype: str, make_units: MakeUnits, tiny_model: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(dtype)
    result, _, units, reference = answer_and_reference(
        model, make_units, monkeypatch, unit_count=4, recent_unit_count=1
    )
    newest = len(units) - 1
    scale = (model.decoder.head_count * model.decoder.head_dim) ** -0.5
    for layer_units, scores in zip(result.layer_units, reference.layer_scores, strict=True):
        best = scores[:newest].topk(3).indices.tolist()
        assert layer_units.tolist() == [*sorted(best), newest]
    shares = torch.stack([(scores * scale).softmax(0) for scores in reference.layer_scores])
    np.testing.assert_allclose(result.unit_scores, shares.mean(0), atol=1e-5)


def test_shared_choice_is_the_best_by_the_sum_of_softmax_scores_before_retrieval(
    tiny_model: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("float64")
    result, _, units, _ = answer_and_reference(
        model, streams.full_units, monkeypatch, unit_count=4, retrieval="shared"
    )
    newest = len(units) - 1
    probe = dense_answer(model, units, QUESTION, [0], lambda layer, scores: [newest])
    scale = (model.decoder.head_count * model.decoder.head_dim) ** -0.5
    shares = torch.stack([(scores * scale).softmax(0) for scores in probe.layer_scores]).sum(0)
    best = shares[:newest].topk(3).indices.tolist()
    assert [layer.tolist() for layer in result.layer_units] == [[*sorted(best), newest]] * 3


def test_layers_agree_on_the_best_by_the_sum_of_the_softmax_scores_of_their_own_choices(
    tiny_model: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("float64")
    scale = (model.decoder.head_count * model.decoder.head_dim) ** -0.5
    differs = False
    for unit_count in (3, 4, 5, 6, 7, 8):
        result, _, units, _ = answer_and_reference(
            model, streams.full_units, monkeypatch, unit_count=unit_count, retrieval="agreed"
        )
        newest, count = len(units) - 1, unit_count - 1

        def best(scores: Tensor, newest: int = newest, count: int = count) -> list[int]:
            return [*sorted(scores[:newest].topk(count).indices.tolist()), newest]

        first = dense_answer(model, units, QUESTION, [0], lambda layer, scores: best(scores))
        shares = torch.stack([(scores * scale).softmax(0) for scores in first.layer_scores])
        assert [layer.tolist() for layer in result.layer_units] == [best(shares.sum(0))] * 3
        shared = answer(
            model, request(unit_count=unit_count, retrieval="shared"), ListMemory(units)
        )
        differs |= shared.layer_units[0].tolist() != result.layer_units[0].tolist()
    assert differs, "or the test shows little"


@pytest.mark.parametrize("dtype", DTYPES)
def test_subsets_equal_stock_attention_over_a_cache_built_by_hand(
    dtype: str, tiny_model: LoadTiny, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(dtype)
    result, logits, units, _ = answer_and_reference(
        model, streams.full_units, monkeypatch, unit_count=4
    )
    assert len({tuple(layer.tolist()) for layer in result.layer_units}) > 1
    stock = stock_model(tiny_path, dtype)
    text_model = stock.get_decoder()
    cache, start = DynamicCache(config=text_model.config), 0
    for layer, chosen in enumerate(result.layer_units):
        kept = [units[unit].kv for unit in chosen]
        parts = [model.prefix.keys[layer], *(kv.keys[layer].transpose(0, 1) for kv in kept)]
        values = [model.prefix.values[layer], *(kv.values[layer].transpose(0, 1) for kv in kept)]
        keys = torch.cat(parts, dim=1)[None]
        start = keys.shape[2]
        tables = model.decoder.rope.tables(torch.arange(start), keys)
        rotated = model.decoder.rope.apply(keys, tables)
        cache.update(rotated, torch.cat(values, dim=1)[None], layer)
    prompt = model.prompt.question(QUESTION)
    embeds = model.adapter.question_embeds(prompt.token_ids)[None]
    for step, token_id in enumerate(result.token_ids):
        places = torch.arange(start, start + embeds.shape[1])[None]
        with torch.inference_mode():
            hidden = text_model(
                inputs_embeds=embeds, position_ids=places, past_key_values=cache
            ).last_hidden_state
            expected = stock.lm_head(hidden[0, -1:])
        assert difference(logits[step : step + 1], expected) < TOLERANCE[dtype]
        assert int(expected.argmax()) == token_id
        start += embeds.shape[1]
        embeds = model.decoder.embed([token_id])[None]


def shift_the_question(patch: pytest.MonkeyPatch) -> None:
    original = context.LayerKV.__init__

    def shifted(self: Any, keys: Tensor, values: Tensor, *, question_position: int) -> None:
        original(self, keys, values, question_position=question_position + 1)

    patch.setattr(context.LayerKV, "__init__", shifted)


def shift_the_units(patch: pytest.MonkeyPatch) -> None:
    original = TinyLayout.local_positions
    patch.setattr(TinyLayout, "local_positions", lambda *args: original(*args) + 1)


def swap_two_units(patch: pytest.MonkeyPatch) -> None:
    original = ListMemory.load
    patch.setattr(ListMemory, "load", lambda self, layer, units: original(self, layer, units[::-1]))


def lose_the_first_token(patch: pytest.MonkeyPatch) -> None:
    def attend(self: Any, query: Tensor, stop: int, scaling: float | None) -> Tensor:
        keys, values = self._keys[:, :, 1:stop], self._values[:, :, 1:stop]
        return core(query, keys, values, scaling=scaling)

    patch.setattr(context.LayerKV, "attend", attend)


def let_the_question_see_itself_whole(patch: pytest.MonkeyPatch) -> None:
    def attend(self: Any, query: Tensor, stop: int, scaling: float | None) -> Tensor:
        mask = torch.ones(query.shape[2], stop, dtype=torch.bool)
        keys, values = self._keys[:, :, :stop], self._values[:, :, :stop]
        return core(query, keys, values, scaling=scaling, mask=mask)

    patch.setattr(context.LayerKV, "attend", attend)


def give_every_layer_the_first_layers_prefix(patch: pytest.MonkeyPatch) -> None:
    original = context.Context._load

    def load(self: Any, layer: int, units: Any) -> Any:
        layer_kv = original(self, layer, units)
        count = self._grounds.prefix_count
        layer_kv._values[:, :, :count] = self._grounds.prefix_values[0]
        return layer_kv

    patch.setattr(context.Context, "_load", load)


@pytest.mark.parametrize(
    "mutate",
    [
        shift_the_question,
        shift_the_units,
        swap_two_units,
        lose_the_first_token,
        let_the_question_see_itself_whole,
        give_every_layer_the_first_layers_prefix,
    ],
)
def test_the_comparison_notices_what_it_is_there_for(
    mutate: Callable[[pytest.MonkeyPatch], None],
    tiny_model: LoadTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("float32")
    units = encode(model, streams.full_units(model, 12), WINDOW)
    with monkeypatch.context() as patch:
        mutate(patch)
        tap = LogitsTap(model, patch)
        result = answer(model, request(unit_count=4, max_new_tokens=1), ListMemory(units))
    chosen = [layer.tolist() for layer in result.layer_units]
    reference = dense_answer(
        model, units, QUESTION, result.token_ids, lambda layer, scores: chosen[layer]
    )
    assert difference(tap.rows, reference.logits) > 50 * TOLERANCE["float32"]
