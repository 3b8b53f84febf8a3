"""How requests live together in one engine: joining, leaving, failing, being refused."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvstore.errors import SliceCorruptError
from retrieval.errors import BudgetTooSmallError
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import (
    AnswerLimits,
    AnswerRequest,
    NothingVisibleError,
    RequestError,
)
from svc.engine.answering import Answering
from svc.engine.errors import EmptyQuestionError, QuestionTooLongError
from svc.engine.losses import EvidenceLostError
from svc.engine.model import LoadedModel
from svc.engine.sampling import Sampling
from tests.svc.engine import streams
from tests.svc.engine.answer_world import (
    DTYPES,
    QUESTION,
    TOLERANCE,
    ListMemory,
    LogitsTap,
    answer,
    encode,
    finish,
)

LoadTiny = Callable[[str], LoadedModel]


@pytest.fixture(scope="module")
def model(tiny_model: LoadTiny) -> LoadedModel:
    return tiny_model("float32")


def memories(model: LoadedModel) -> tuple[ListMemory, ListMemory]:
    """Return two sessions: one of whole units, a shorter one of ragged units."""
    return (
        ListMemory(encode(model, streams.full_units(model, 9))),
        ListMemory(encode(model, streams.ragged_units(model, 5))),
    )


@pytest.fixture(scope="module")
def memory(model: LoadedModel) -> ListMemory:
    return memories(model)[0]


def request(**fields: Any) -> AnswerRequest:
    defaults = {"question": QUESTION, "temperature": 0.0, "max_new_tokens": 8, "unit_count": 3}
    return AnswerRequest(**(defaults | fields))


MIX = [
    (0, request()),
    (1, request(question="When did the green star appear?", unit_count=4, ignore_eos=True)),
    (0, request(retrieval="shared", unit_count=5, max_new_tokens=3)),
    (1, request(choices=("a red circle", "blue", "yellow triangle"))),
    (0, request(temperature=1.0, seed=3, history=(("And before?", "A square."),))),
    (1, request(unit_indices=(0, 3), recent_unit_count=0, max_new_tokens=5)),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_equals_one_by_one_with_requests_joining_and_leaving(
    dtype: str, tiny_model: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(dtype)
    sessions = memories(model)
    alone = []
    for index, own in MIX:
        with monkeypatch.context() as patch:
            tap = LogitsTap(model, patch)
            alone.append((answer(model, own, sessions[index]), tap.rows))
    engine = AnswerEngine(model)
    waiting = [engine.start(own, sessions[index]) for index, own in MIX]
    active: list[Answering] = []
    rows: dict[int, list[torch.Tensor]] = {i: [] for i in range(len(MIX))}
    tap = LogitsTap(model, monkeypatch)
    numbers = {id(answering): number for number, answering in enumerate(waiting)}
    while waiting or active:
        active += waiting[:2]  # two join at every step
        del waiting[:2]
        wanted = [_rows_of(answering) for answering in active]
        engine.step(active)
        for answering, own in zip(active, tap.calls[-1].split(wanted), strict=True):
            rows[numbers[id(answering)]].append(own)
        for answering in [a for a in active if a.finished]:
            expected = alone[numbers[id(answering)]][0]
            assert answering.result is not None
            _assert_same(answering.result, expected, TOLERANCE[dtype])
            active.remove(answering)
    for number, (_, expected_rows) in enumerate(alone):
        difference = (torch.cat(rows[number]) - expected_rows).abs().max()
        assert float(difference) < TOLERANCE[dtype]


def _rows_of(answering: Answering) -> int:
    answering.next_segments()
    return len(answering.rows_wanted())


def _assert_same(actual: Any, expected: Any, tolerance: float) -> None:
    assert actual.token_ids == expected.token_ids
    assert actual.text == expected.text
    assert actual.finish_reason == expected.finish_reason
    assert actual.choice_index == expected.choice_index
    assert actual.choice_log_likelihoods == pytest.approx(
        expected.choice_log_likelihoods, abs=10 * tolerance
    )
    for own, other in zip(actual.layer_units, expected.layer_units, strict=True):
        assert own.tolist() == other.tolist()
    np.testing.assert_allclose(actual.unit_scores, expected.unit_scores, atol=1e-4)


def test_deltas_joined_are_the_text(model: LoadedModel, memory: ListMemory) -> None:
    engine = AnswerEngine(model)
    answering = engine.start(request(max_new_tokens=30, ignore_eos=True), memory)
    text = ""
    while not answering.finished:
        engine.step([answering])
        text += answering.text_delta
    assert answering.result is not None
    assert text == answering.result.text
    engine.step([answering])
    assert answering.text_delta == ""


class FailingMemory(ListMemory):
    """A memory one of whose layers cannot be read."""

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        if layer == 1:
            raise SliceCorruptError("session", 0, int(units[0]), layer)
        return super().load(layer, units)


def test_one_requests_fault_is_its_own(model: LoadedModel, memory: ListMemory) -> None:
    expected = answer(model, request(), memory)
    engine = AnswerEngine(model)
    failing = engine.start(request(max_new_tokens=4), FailingMemory(memory.units))
    sound = engine.start(request(), memory)
    engine.step([failing, sound])
    assert failing.finished
    assert isinstance(failing.error, EvidenceLostError)
    assert failing.result is None
    finish(engine, sound)
    assert sound.result is not None
    assert sound.result.token_ids == expected.token_ids


def test_an_answer_whose_next_token_cannot_be_chosen_fails_alone(
    model: LoadedModel, memory: ListMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(model, request(), memory)
    engine = AnswerEngine(model)
    sound = engine.start(request(), memory)
    monkeypatch.setattr(Sampling, "processors", lambda settings: lambda said, scores: scores - inf)
    failing = engine.start(request(temperature=1.0), memory)
    finish(engine, sound, failing)
    assert failing.finished
    assert isinstance(failing.error, RuntimeError)
    assert failing.result is None
    assert sound.result is not None
    assert sound.result.token_ids == expected.token_ids


@pytest.mark.parametrize("temperature", [0.01, 10.0])
@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_extremes_that_are_allowed_can_be_sampled(
    temperature: float, penalty: float, model: LoadedModel, memory: ListMemory
) -> None:
    extreme = request(temperature=temperature, repetition_penalty=penalty, ignore_eos=True)
    assert len(answer(model, extreme, memory).token_ids) == 8


def test_a_bug_is_not_taken_for_a_requests_fault(
    model: LoadedModel, memory: ListMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(ListMemory, "scores", broken)
    engine = AnswerEngine(model)
    with pytest.raises(TypeError, match="a bug"):
        engine.step([engine.start(request(), memory)])


@pytest.mark.parametrize("steps_before", [0, 1, 4])
def test_a_cancelled_answer_ends_before_the_next_step(
    steps_before: int, model: LoadedModel, memory: ListMemory
) -> None:
    engine = AnswerEngine(model)
    other = engine.start(request(ignore_eos=True), memory)
    answering = engine.start(request(ignore_eos=True, max_new_tokens=64), memory)
    for _ in range(steps_before):
        engine.step([answering, other])
    answering.cancel()
    engine.step([answering, other])
    assert answering.result is not None
    assert answering.result.finish_reason == "cancelled"
    assert len(answering.result.token_ids) == steps_before
    assert (answering.result.timings.ttft_s is None) == (steps_before == 0)
    finish(engine, other)
    expected = answer(model, request(ignore_eos=True), memory)
    assert other.result is not None
    assert other.result.token_ids == expected.token_ids


def test_the_same_question_again_gives_the_same_answer_to_the_bit(
    model: LoadedModel, memory: ListMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            tap = LogitsTap(model, patch)
            answer(model, request(temperature=1.0, seed=9), memory)
            rows.append(tap.rows)
    assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"choices": ("a",) * 27}, "choices"),
        ({"choices": ("red", "")}, "choices"),
        ({"choices": ("red", "long " * 300)}, "choices"),
        ({"history": (("a", "b"),) * 33}, "history"),
        ({"history": (("a" * 32_000, "b" * 32_001),)}, "characters of history"),
        ({"unit_count": 0}, "unit_count"),
        ({"unit_count": 2, "recent_unit_count": 3}, "recent_unit_count"),
        ({"token_count": 0}, "token_count"),
        ({"token_count": 40_000}, "token_count"),
        ({"unit_indices": (3, 1)}, "unit_indices"),
        ({"unit_indices": (0, 9)}, "unit_indices"),
        ({"unit_indices": (-1, 2)}, "unit_indices"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 5000}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"temperature": 0.0099}, "temperature"),
        ({"temperature": 10.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"repetition_penalty": 100.1}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"stop": ("",)}, "length of a stop string"),
        ({"stop": ("x",) * 17}, "stop"),
        ({"retrieval": "all"}, "retrieval"),
    ],
)
def test_a_request_beyond_the_limits_is_refused_by_name(
    fields: dict[str, Any], field: str, model: LoadedModel, memory: ListMemory
) -> None:
    with pytest.raises(RequestError) as caught:
        AnswerEngine(model).start(request(**fields), memory)
    assert caught.value.field == field


def test_questions_of_no_or_too_many_tokens_are_refused(
    model: LoadedModel, memory: ListMemory
) -> None:
    engine = AnswerEngine(model, AnswerLimits(max_question_tokens=60))
    with pytest.raises(EmptyQuestionError):
        engine.start(request(question=""), memory)
    with pytest.raises(QuestionTooLongError):
        engine.start(request(question="why? " * 60), memory)


def test_an_empty_snapshot_is_refused(model: LoadedModel) -> None:
    with pytest.raises(NothingVisibleError):
        AnswerEngine(model).start(request(), ListMemory([]))


def test_a_budget_below_the_newest_unit_ends_that_answer(
    model: LoadedModel, memory: ListMemory
) -> None:
    with pytest.raises(BudgetTooSmallError):
        answer(model, request(token_count=8), memory)


def test_a_context_never_passes_the_models_positions(
    model: LoadedModel, memory: ListMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = model.prompt.question(QUESTION)
    fixed_count = model.prefix.token_count + prompt.position_count + 8
    monkeypatch.setattr(model.decoder, "max_position_count", fixed_count + 4 * 9 + 5)
    result = answer(model, request(unit_count=100), memory)
    assert result.context_unit_count == 4  # nine tokens each: five positions stay unused
    monkeypatch.setattr(model.decoder, "max_position_count", fixed_count)
    with pytest.raises(RequestError, match="at least 1 tokens less"):
        answer(model, request(), memory)


def test_counts_say_what_the_fullest_layer_read(model: LoadedModel) -> None:
    memory = memories(model)[1]
    result = answer(model, request(unit_count=3, newest_whole=False), memory)
    tokens = [int(memory.token_counts[units].sum()) for units in result.layer_units]
    prompt = model.prompt.question(QUESTION)
    assert result.context_unit_count == 3
    assert result.context_token_count == max(tokens)
    assert result.prompt_token_count == (
        model.prefix.token_count + max(tokens) + prompt.position_count
    )
    assert set(np.flatnonzero(result.loaded)) == set(np.concatenate(result.layer_units).tolist())
    assert result.unit_scores.sum() == pytest.approx(1.0)
    timings = result.timings
    assert timings.ttft_s is not None
    assert 0 < timings.retrieval_s < timings.ttft_s <= timings.total_s


def test_a_result_shows_its_shape_and_not_its_arrays(
    model: LoadedModel, memory: ListMemory
) -> None:
    assert "unit_scores" not in repr(answer(model, request(), memory))
