"""An answer goes on without what is damaged: never from zeros, never silently, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvstore.errors import SliceCorruptError, joined
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerLimits, AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.losses import EvidenceLostError, LostUnit
from svc.engine.memory import Memory
from svc.engine.model import LoadedModel
from tests.svc.engine import streams
from tests.svc.engine.answer_world import QUESTION, ListMemory, LogitsTap, answer, encode, finish

LoadTiny = Callable[[str], LoadedModel]
UNIT_COUNT = 9
NEWEST = UNIT_COUNT - 1


@pytest.fixture(scope="module")
def model(tiny_model: LoadTiny) -> LoadedModel:
    return tiny_model("float32")


@pytest.fixture(scope="module")
def memory(model: LoadedModel) -> ListMemory:
    return ListMemory(encode(model, streams.ragged_units(model, UNIT_COUNT)))


def request(**fields: Any) -> AnswerRequest:
    defaults = {
        "question": QUESTION,
        "temperature": 0.0,
        "max_new_tokens": 4,
        "unit_count": 4,
        "ignore_eos": True,
    }
    return AnswerRequest(**(defaults | fields))


class DamagedMemory(ListMemory):
    """A memory with units that cannot be read from some layer on."""

    def __init__(self, sound: ListMemory, damaged: Mapping[int, int]) -> None:
        """`damaged`: the first layer that cannot be read, by unit."""
        super().__init__(sound.units)
        self._damaged = damaged

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        errors = [
            SliceCorruptError("door", 3, unit, layer)
            for unit in units.tolist()
            if layer >= self._damaged.get(unit, 99)
        ]
        if errors:
            raise joined(errors)
        return super().load(layer, units)


class ZeroingMemory(DamagedMemory):
    """The mutant: damage reads as zeros."""

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        try:
            return super().load(layer, units)
        except SliceCorruptError:
            keys, values = ListMemory.load(self, layer, units)
            return torch.zeros_like(keys), torch.zeros_like(values)


class DislikedMemory(ListMemory):
    """The independent reference: whole, with scores that no choice falls on."""

    def __init__(self, sound: ListMemory, disliked: Mapping[int, int]) -> None:
        super().__init__(sound.units)
        self._disliked = disliked

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = super().scores(layer, query)
        for unit, first_layer in self._disliked.items():
            if layer >= first_layer:
                scores[unit] = -1e9
        return scores


def with_logits(
    model: LoadedModel, own: AnswerRequest, memory: Memory
) -> tuple[AnswerResult, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        tap = LogitsTap(model, patch)
        return answer(model, own, memory), tap.rows


def lists(result: AnswerResult) -> list[list[int]]:
    return [units.tolist() for units in result.layer_units]


def chosen_in(result: AnswerResult, layer: int) -> int:
    """A unit that the layer chose by its score."""
    return int(result.layer_units[layer][0])


def assert_goes_on_without(
    model: LoadedModel, sound: ListMemory, damaged: Mapping[int, int], memory: Memory
) -> None:
    """The answer is that of a store in which the units were never worth choosing."""
    result, logits = with_logits(model, request(), memory)
    expected, expected_logits = with_logits(model, request(), DislikedMemory(sound, damaged))
    assert lists(result) == lists(expected)
    assert torch.equal(logits, expected_logits)
    assert {lost.unit_index for lost in result.lost} == set(damaged)


@pytest.mark.parametrize("first_layer", [0, 1])
def test_the_next_best_takes_the_place_of_a_damaged_unit(
    model: LoadedModel, memory: ListMemory, first_layer: int
) -> None:
    whole = answer(model, request(), memory)
    unit = chosen_in(whole, first_layer)
    damaged = {unit: first_layer}
    memory_of = DamagedMemory(memory, damaged)
    assert_goes_on_without(model, memory, damaged, memory_of)
    result = answer(model, request(), memory_of)
    assert [len(units) for units in result.layer_units] == [4] * model.layer_count
    assert all(unit not in units for units in lists(result)[first_layer:])
    assert lists(result)[:first_layer] == lists(whole)[:first_layer]
    lost = LostUnit(unit_index=unit, layer_index=first_layer, block_index=3, unreadable=False)
    assert result.lost == (lost,)
    with pytest.raises(AssertionError):
        assert_goes_on_without(model, memory, damaged, ZeroingMemory(memory, damaged))


def test_a_whole_store_loses_nothing(model: LoadedModel, memory: ListMemory) -> None:
    assert answer(model, request(), memory).lost == ()


def test_damage_that_no_layer_chose_is_not_spoken_of(
    model: LoadedModel, memory: ListMemory
) -> None:
    whole, logits = with_logits(model, request(), memory)
    unread = set(range(UNIT_COUNT)) - {unit for units in lists(whole) for unit in units}
    result, same = with_logits(model, request(), DamagedMemory(memory, dict.fromkeys(unread, 0)))
    assert unread
    assert result.lost == ()
    assert torch.equal(logits, same)


def test_the_unit_before_takes_the_place_of_the_newest(
    model: LoadedModel, memory: ListMemory
) -> None:
    own = request(unit_count=2, recent_unit_count=2)
    result = answer(model, own, DamagedMemory(memory, {NEWEST: 1}))
    assert lists(result)[0] == [NEWEST - 1, NEWEST]
    assert lists(result)[1:] == [[NEWEST - 2, NEWEST - 1]] * (model.layer_count - 1)


@pytest.mark.parametrize("own", [request(retrieval="shared"), request(pooling="mean_and_tokens")])
def test_a_damaged_unit_is_chosen_by_no_layer_that_could_not_read_it(
    model: LoadedModel, memory: ListMemory, own: AnswerRequest
) -> None:
    unit = chosen_in(answer(model, own, memory), 0)
    result = answer(model, own, DamagedMemory(memory, {unit: 0}))
    assert all(unit not in units and len(units) == own.unit_count for units in lists(result))
    assert [lost.unit_index for lost in result.lost] == [unit]


def test_a_unit_lost_while_layers_make_up_their_minds_stays_lost(
    model: LoadedModel, memory: ListMemory
) -> None:
    own = request(retrieval="agreed")
    unit = chosen_in(answer(model, request(), memory), 1)
    result = answer(model, own, DamagedMemory(memory, {unit: 1}))
    assert all(units == lists(result)[0] and unit not in units for units in lists(result))
    assert [lost.unit_index for lost in result.lost] == [unit]


@pytest.mark.parametrize("first_layer", [0, 1])
def test_a_choice_that_all_layers_share_goes_on_shared(
    model: LoadedModel, memory: ListMemory, first_layer: int
) -> None:
    own = request(retrieval="shared")
    whole = answer(model, own, memory)
    unit = chosen_in(whole, 0)
    result = answer(model, own, DamagedMemory(memory, {unit: first_layer}))
    assert lists(result)[:first_layer] == lists(whole)[:first_layer]
    later = lists(result)[first_layer:]
    assert all(units == later[0] for units in later)
    assert unit not in later[0]
    assert len(set(later[0]) - set(lists(whole)[0])) == 1
    assert [lost.unit_index for lost in result.lost] == [unit]


def test_the_newest_lost_while_scores_are_gathered_stays_lost(
    model: LoadedModel, memory: ListMemory
) -> None:
    result = answer(model, request(retrieval="shared"), DamagedMemory(memory, {NEWEST: 1}))
    assert all(NEWEST not in units and NEWEST - 1 in units for units in lists(result))
    assert [lost.unit_index for lost in result.lost] == [NEWEST]


def test_nothing_takes_the_place_of_a_unit_that_was_asked_for_by_name(
    model: LoadedModel, memory: ListMemory
) -> None:
    own = request(unit_indices=(1, 4, 6))
    result, logits = with_logits(model, own, DamagedMemory(memory, {4: 0}))
    _, without = with_logits(model, request(unit_indices=(1, 6)), memory)
    assert lists(result) == [[1, 6]] * model.layer_count
    assert torch.equal(logits, without)
    assert [lost.unit_index for lost in result.lost] == [4]


@pytest.mark.parametrize(
    ("damaged", "survives"), [((1, 4), True), ((1, 4, 6), False), ((1, 3, 4, 6), False)]
)
def test_more_than_half_lost_ends_the_answer_and_names_a_slice(
    model: LoadedModel, memory: ListMemory, damaged: Sequence[int], survives: bool
) -> None:
    own = request(unit_indices=(1, 3, 4, 6))
    memory_of = DamagedMemory(memory, dict.fromkeys(damaged, 1))
    if survives:
        assert len(answer(model, own, memory_of).lost) == len(damaged)
        return
    with pytest.raises(EvidenceLostError) as error:
        answer(model, own, memory_of)
    assert (error.value.lost_count, error.value.wanted_count) == (len(damaged), 4)
    assert (error.value.first.unit_index, error.value.first.layer_index) == (1, 1)


def test_damaged_replacements_count_as_lost(model: LoadedModel, memory: ListMemory) -> None:
    every_old_one = dict.fromkeys(range(NEWEST), 0)
    with pytest.raises(EvidenceLostError):
        answer(model, request(), DamagedMemory(memory, every_old_one))


def test_the_limit_is_a_setting(model: LoadedModel, memory: ListMemory) -> None:
    engine = AnswerEngine(model, AnswerLimits(max_lost_fraction=0.0))
    own = request(unit_indices=tuple(range(UNIT_COUNT)))
    failing = engine.start(own, DamagedMemory(memory, {2: 1}))
    sound = engine.start(own, memory)
    finish(engine, failing, sound)
    assert isinstance(failing.error, EvidenceLostError)
    assert sound.error is None
