"""Questions that continue a conversation: what searches, what fits, and what stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retrieval.fusion import softmax_mean
from retrieval.query import rekv_query
from svc.engine.answer_request import AnswerRequest
from svc.engine.model import LoadedModel
from tests.svc.engine import streams
from tests.svc.engine.answer_world import QUESTION, ListMemory, answer, encode

LoadTiny = Callable[[str], LoadedModel]
TURNS = (
    ("Where was the star?", "On the left."),
    ("When did it start?", "Before the red circle."),
    ("And then?", "It went."),
    ("Why?", "Nobody knows."),
)
UNIT_COUNT = 16


class SeenSearches(ListMemory):
    """Remembers by which vectors it was searched, and what it said: of each search another order.

    The searches of a tiny model with random weights would all name the same units.
    """

    def __init__(self, memory: ListMemory) -> None:
        super().__init__(memory.units)
        self._orders = np.random.default_rng(0)
        self.asked: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]] = []

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        found = self._orders.permutation(self.unit_count).astype(np.float32)
        self.asked.append((layer, query, found))
        return found

    def searches(self, layer: int) -> list[NDArray[np.float32]]:
        return [found for at, _, found in self.asked if at == layer]


@pytest.fixture(scope="module")
def model(tiny_model: LoadTiny) -> LoadedModel:
    return tiny_model("float32")


@pytest.fixture
def memory(model: LoadedModel) -> SeenSearches:
    return SeenSearches(ListMemory(encode(model, streams.full_units(model, UNIT_COUNT))))


def request(**fields: Any) -> AnswerRequest:
    defaults: dict[str, Any] = {
        "question": QUESTION,
        "temperature": 0.0,
        "max_new_tokens": 4,
        "unit_count": 6,
    }
    return AnswerRequest(**(defaults | fields))


def by_turns(searches: list[NDArray[np.floating]], unit_count: int) -> list[int]:
    """Return the newest unit and what the searches name, the first of them every second time."""
    newest = UNIT_COUNT - 1
    first, *others = (
        iter(sorted(range(UNIT_COUNT), key=lambda unit: -scores[unit])) for scores in searches
    )
    found = {newest}
    turn = 0
    while True:
        for search in (first, others[turn % len(others)]):
            found.add(next(search))
            if len(found) == unit_count:
                return sorted(found)
        turn += 1


@pytest.mark.parametrize("turn_count", [1, 2, 3, 4])
def test_the_question_and_the_last_three_turns_search_apart_and_take_turns(
    model: LoadedModel, memory: SeenSearches, turn_count: int
) -> None:
    result = answer(model, request(history=TURNS[:turn_count]), memory)
    assert result.history_turn_count == turn_count
    for layer, units in enumerate(result.layer_units):
        searches = memory.searches(layer)
        assert len(searches) == 1 + min(turn_count, 3)
        assert units.tolist() == by_turns(searches, 6)
        shares = [softmax_mean([scores], result.score_scale) for scores in searches]
        expected = 0.5 * shares[0] + 0.5 * np.mean(shares[1:], axis=0)
        share = softmax_mean([result.layer_scores[layer]], result.score_scale)
        np.testing.assert_allclose(share, expected, rtol=1e-4)
    assert result.unit_scores.sum() == pytest.approx(1.0)


def test_a_turn_searches_as_if_it_were_asked_alone(
    model: LoadedModel, memory: SeenSearches
) -> None:
    """In the first layer, which nothing that was retrieved has reached."""
    turn = TURNS[0]
    answer(model, request(history=(turn,)), memory)
    decoder = model.decoder
    text = model.prompt.encode_text("".join(turn))
    layer = decoder.text_model.layers[0]
    states = layer.input_layernorm(decoder.embed(list(text)))
    query = layer.self_attn.q_proj(states).unflatten(-1, (decoder.head_count, decoder.head_dim))
    expected = rekv_query(query.transpose(0, 1).double().numpy(), decoder.kv_head_count)
    _, vector, _ = memory.asked[1]
    np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)


def test_a_shared_choice_takes_turns_by_the_searches_averaged_over_the_layers(
    model: LoadedModel, memory: SeenSearches
) -> None:
    result = answer(model, request(history=TURNS[:2], retrieval="shared"), memory)
    probe = [memory.searches(layer)[:3] for layer in range(model.layer_count)]
    shared = [softmax_mean(scores, result.score_scale) for scores in zip(*probe, strict=True)]
    expected = by_turns(list(shared), 6)
    assert [units.tolist() for units in result.layer_units] == [expected] * model.layer_count


@pytest.mark.parametrize("retrieval", ["per_layer", "shared"])
def test_a_question_alone_searches_once_and_by_its_own_text_alone(
    model: LoadedModel, memory: SeenSearches, retrieval: str
) -> None:
    result = answer(model, request(retrieval=retrieval), memory)
    assert result.history_turn_count == 0
    passes = 2 if retrieval == "shared" else 1
    for layer in range(model.layer_count):
        searches = memory.searches(layer)
        assert len(searches) == passes
        assert np.array_equal(result.layer_scores[layer], searches[-1])  # to the bit


def test_a_conversation_leaves_keys_and_values_of_the_stream_as_they_were(
    model: LoadedModel, memory: SeenSearches
) -> None:
    before = [(unit.kv.keys.clone(), unit.kv.values.clone()) for unit in memory.units]
    history: list[tuple[str, str]] = []
    for question, _ in TURNS:
        result = answer(model, request(question=question, history=tuple(history)), memory)
        history.append((question, result.text))
    assert len(memory.units) == UNIT_COUNT
    for unit, (keys, values) in zip(memory.units, before, strict=True):
        assert torch.equal(unit.kv.keys, keys)
        assert torch.equal(unit.kv.values, values)


def room_for(model: LoadedModel, turn_count: int, token_count: int) -> int:
    """Return the positions that a model must have for so many turns and tokens of units."""
    history = TURNS[len(TURNS) - turn_count :]
    prompt = model.prompt.question(QUESTION, history)
    return model.prefix.token_count + prompt.position_count + 4 + token_count


@pytest.mark.parametrize("turn_count", [0, 1, 3, 4])
@pytest.mark.parametrize(
    ("fields", "token_count"),
    [
        ({"token_count": 20}, 20),
        ({"unit_indices": (0, 4, 9)}, 27),
        ({"unit_count": 5}, 45),
        ({"unit_count": 100}, 9 * UNIT_COUNT),
    ],
    ids=["tokens", "units", "so many units", "more than there are"],
)
def test_turns_leave_the_room_that_the_question_asks_to_read(
    model: LoadedModel,
    memory: SeenSearches,
    monkeypatch: pytest.MonkeyPatch,
    turn_count: int,
    fields: dict[str, Any],
    token_count: int,
) -> None:
    room = room_for(model, turn_count, token_count)
    monkeypatch.setattr(model.decoder, "max_position_count", room)
    result = answer(model, request(history=TURNS, **fields), memory)
    assert result.history_turn_count == turn_count
    if turn_count:
        monkeypatch.setattr(model.decoder, "max_position_count", room - 1)
        result = answer(model, request(history=TURNS, **fields), memory)
        assert result.history_turn_count == turn_count - 1
