"""Decoding against transformers' own generate: penalties, sampling, ends of answers, options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svc.engine.answer_request import AnswerRequest
from svc.engine.model import LoadedModel
from tests.svc.engine import streams
from tests.svc.engine.answer_world import (
    QUESTION,
    ListMemory,
    answer,
    encode,
    stock_inputs,
    stock_model,
    with_generation_config,
)

LoadTiny = Callable[[str], LoadedModel]
FRAMES, STEPS = 3, 16
ALL = 10_000
VARIED = 1.5
"""A repetition penalty: a tiny random model says one token over and over without."""


@pytest.fixture(scope="module")
def model(tiny_model: LoadTiny) -> LoadedModel:
    return tiny_model("float64")


@pytest.fixture(scope="module")
def stock(tiny_path: Path) -> Any:
    return stock_model(tiny_path, "float64")


@pytest.fixture(scope="module")
def memory(model: LoadedModel) -> ListMemory:
    return ListMemory(encode(model, streams.full_units(model, FRAMES)))


@pytest.fixture(scope="module")
def free_run(model: LoadedModel, memory: ListMemory) -> list[int]:
    """Return what is decoded greedily when nothing ends the answer; never the same for long."""
    varied = request(temperature=0.0, ignore_eos=True, repetition_penalty=VARIED)
    ids = list(answer(model, varied, memory).token_ids)
    assert len(set(ids)) > STEPS // 2
    return ids


def request(**fields: Any) -> AnswerRequest:
    defaults = {"question": QUESTION, "unit_count": ALL, "max_new_tokens": STEPS}
    return AnswerRequest(**(defaults | fields))


def generate(model: LoadedModel, stock: Any, **settings: Any) -> list[int]:
    """Return the new tokens of transformers' generate; its own defaults but the length."""
    inputs = stock_inputs(model, FRAMES, QUESTION)
    stock.generation_config = model.generation_config
    sequences = stock.generate(**inputs, max_new_tokens=STEPS, **settings)
    return sequences[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("penalty", [VARIED, 1.2, 0.7])
def test_repetition_penalty_counts_the_prompt_as_generate_does(
    penalty: float,
    model: LoadedModel,
    stock: Any,
    memory: ListMemory,
) -> None:
    greedy = {"ignore_eos": True, "temperature": 0.0}
    ours = answer(model, request(repetition_penalty=penalty, **greedy), memory)
    theirs = generate(model, stock, do_sample=False, repetition_penalty=penalty, eos_token_id=[])
    assert list(ours.token_ids) == theirs
    assert theirs != list(answer(model, request(**greedy), memory).token_ids)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.5, "top_k": 0, "top_p": 0.6},
        {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2},
    ],
)
@pytest.mark.parametrize("seed", [0, 11])
def test_sampling_with_a_seed_equals_generate(
    settings: dict[str, Any], seed: int, model: LoadedModel, stock: Any, memory: ListMemory
) -> None:
    ours = answer(model, request(seed=seed, **settings), memory)
    torch.manual_seed(seed)
    assert list(ours.token_ids) == generate(model, stock, do_sample=True, **settings)


def test_what_the_request_leaves_open_the_models_generation_config_decides(
    model: LoadedModel, stock: Any, memory: ListMemory
) -> None:
    configured = with_generation_config(
        model, do_sample=True, temperature=1.4, top_p=0.9, min_p=0.3, repetition_penalty=1.1
    )
    ours = answer(configured, request(seed=5), memory)
    torch.manual_seed(5)
    assert list(ours.token_ids) == generate(configured, stock)
    greedy = answer(configured, request(temperature=0.0), memory)
    assert list(greedy.token_ids) == generate(configured, stock, do_sample=False)


def test_answers_without_a_seed_differ(model: LoadedModel, memory: ListMemory) -> None:
    wild = request(temperature=5.0, top_k=0)
    assert len({answer(model, wild, memory).token_ids for _ in range(4)}) > 1


def test_any_of_several_end_tokens_ends_the_answer(
    model: LoadedModel, stock: Any, memory: ListMemory, free_run: list[int]
) -> None:
    never = next(i for i in range(300) if i not in free_run)
    configured = with_generation_config(
        model, eos_token_id=[never, free_run[6]], repetition_penalty=VARIED
    )
    first = free_run.index(free_run[6])
    assert first > 2
    ours = answer(configured, request(temperature=0.0), memory)
    assert list(ours.token_ids) == free_run[: first + 1]
    assert list(ours.token_ids) == generate(configured, stock, do_sample=False)
    assert ours.finish_reason == "stop"
    assert ours.text == model.tokenizer.decode(free_run[:first])
    ignoring = answer(configured, request(temperature=0.0, ignore_eos=True), memory)
    assert (list(ignoring.token_ids), ignoring.finish_reason) == (free_run, "length")


@pytest.mark.parametrize("seed", range(6))
def test_stop_strings_end_where_generate_ends(
    seed: int, model: LoadedModel, stock: Any, memory: ListMemory
) -> None:
    settings = {"temperature": 1.0, "top_k": 20}
    free = answer(model, request(seed=seed, ignore_eos=True, **settings), memory).text
    printable = "".join(c if c.isascii() and c.isprintable() else "\0" for c in free)
    pieces = [piece for piece in printable.split("\0") if len(piece) >= 2]
    stop = (max(pieces, key=len)[1:3], "never said")
    ours = answer(model, request(seed=seed, stop=stop, **settings), memory)
    torch.manual_seed(seed)
    theirs = generate(
        model, stock, do_sample=True, stop_strings=list(stop), tokenizer=model.tokenizer, **settings
    )
    assert list(ours.token_ids) == theirs
    assert stop[0] in ours.text
    assert ours.finish_reason == "stop"


def test_the_length_is_a_limit(model: LoadedModel, memory: ListMemory, free_run: list[int]) -> None:
    short = request(temperature=0.0, max_new_tokens=3, ignore_eos=True, repetition_penalty=VARIED)
    result = answer(model, short, memory)
    assert (list(result.token_ids), result.finish_reason) == (free_run[:3], "length")


def test_options_are_scored_as_whole_answers_with_their_end(
    model: LoadedModel, stock: Any, memory: ListMemory
) -> None:
    choices = ("a red circle", "blue", "<|im_end|>", "the yellow triangle, seen before")
    configured = with_generation_config(model, eos_token_id=[7, 9])
    result = answer(configured, request(choices=choices), memory)
    expected = []
    inputs = stock_inputs(model, FRAMES, QUESTION)
    for choice in choices:
        ids = model.prompt.encode_text(choice)
        whole = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        with torch.inference_mode():
            logits = stock(**(inputs | {"input_ids": whole, "attention_mask": None})).logits[0]
        chances = logits[-len(ids) - 1 :].log_softmax(-1)
        total = sum(float(chances[i, token]) for i, token in enumerate(ids))
        expected.append(total + float(chances[-1, [7, 9]].logsumexp(0)))
    assert result.choice_log_likelihoods == pytest.approx(expected, abs=1e-6)
    assert result.choice_index == max(range(4), key=expected.__getitem__)
    assert result.text == choices[result.choice_index]
    assert result.finish_reason == "choice"


def test_options_do_not_see_each_other(model: LoadedModel, memory: ListMemory) -> None:
    together = answer(model, request(choices=("red", "a blue square", "green")), memory)
    alone = answer(model, request(choices=("a blue square",)), memory)
    assert together.choice_log_likelihoods[1] == pytest.approx(
        alone.choice_log_likelihoods[0], abs=1e-9
    )


def test_settings_that_are_not_followed_are_said(
    model: LoadedModel, memory: ListMemory, caplog: pytest.LogCaptureFixture
) -> None:
    answer(with_generation_config(model, no_repeat_ngram_size=3), request(), memory)
    assert [r.names for r in caplog.records if hasattr(r, "names")] == [["no_repeat_ngram_size"]]
    caplog.clear()
    answer(model, dataclasses.replace(request(), question="And now?"), memory)
    assert not caplog.records
