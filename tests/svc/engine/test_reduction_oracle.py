"""Every policy equals the stock model on the reduced sequence with explicit positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from svc.engine.answer_request import AnswerRequest
from svc.engine.encoder import StreamEncoder
from svc.engine.model import LoadedModel
from svc.engine.reducer import ReducedUnit, Reducer, WholeUnit
from svc.engine.reduction.spec import ReductionSpec
from tests.svc.engine.answer_world import (
    DTYPES,
    QUESTION,
    TOLERANCE,
    UNLIMITED,
    ListMemory,
    LogitsTap,
    StoredUnit,
    answer,
    stock_model,
)

LoadTiny = Callable[[str], LoadedModel]
SPECS = ["none", "dtd:0.97", "dtd_pixel:0.12", "last_kept:0.97", "budget:0.4", "key_norm:0.4"]
UNITS = 9


def whole_units(model: LoadedModel) -> list[WholeUnit]:
    """Return units of a scene of which parts change, and of a new scene from the sixth on."""
    generator = np.random.default_rng(3)
    frame = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    frames = []
    for index in range(UNITS):
        if index == 5:
            frame = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        frame = frame.copy()
        row = 8 * int(generator.integers(0, 3))
        frame[row : row + 12, : int(generator.integers(6, 30))] = generator.integers(0, 256, 3)
        frames.append(frame)
    pixels = model.adapter.preprocess(frames)
    return model.adapter.encode(pixels, [0.0] * len(frames))


def reduced(
    model: LoadedModel, spec: str, whole: list[WholeUnit], at_once: int
) -> list[ReducedUnit]:
    reducer = Reducer(ReductionSpec.parse(spec), model.adapter)
    encoder = StreamEncoder(model, UNLIMITED)
    made = []
    for start in range(0, len(whole), at_once):
        for unit in reducer.encode(encoder, whole[start : start + at_once]):
            reducer.state = unit.state
            made.append(unit)
    return made


@torch.inference_mode()
def stock_logits(
    path: Path,
    model: LoadedModel,
    dtype: str,
    ids: tuple[int, ...],
    whole: list[WholeUnit],
    made: list[ReducedUnit],
    by_keys: bool,
) -> Tensor:
    """Return transformers' own logits before each answer token, positions and mask explicit.

    A policy that reads keys needs the whole unit in the sequence, unseen by what follows.
    """
    stock: Any = stock_model(path, dtype)
    adapter, prompt = model.adapter, model.prompt.question(QUESTION)
    prefix = model.decoder.embed(model.prompt.prefix_ids)
    tail = torch.cat([adapter.question_embeds(prompt.token_ids), model.decoder.embed(ids[:-1])])
    embeds, positions, owners, seen = [prefix], [torch.arange(len(prefix))], [], []
    owners.append(torch.full((len(prefix),), -1))
    seen.append(torch.ones(len(prefix), dtype=torch.bool))
    places = torch.arange(adapter.tokens_per_unit)
    start = len(prefix)
    for index, (unit, one) in enumerate(zip(whole, made, strict=True)):
        kept = torch.from_numpy(one.cells.astype(np.int64) @ np.array([adapter.grid[1], 1]))
        shown = places if by_keys else kept
        embeds.append(unit.embeds[shown])
        positions.append(shown + start)
        owners.append(torch.full((len(shown),), index))
        seen.append(torch.isin(shown, kept))
        start += adapter.position_span
    embeds.append(tail)
    positions.append(torch.arange(len(tail)) + start)
    owners.append(torch.full((len(tail),), len(whole)))
    seen.append(torch.ones(len(tail), dtype=torch.bool))
    owner, lasting = torch.cat(owners), torch.cat(seen)
    allowed = (lasting[None] | (owner[None] == owner[:, None])).tril()
    sequence = torch.cat(embeds)
    mask = torch.zeros(allowed.shape, dtype=sequence.dtype).masked_fill(~allowed, -torch.inf)
    hidden = stock.model.language_model(
        inputs_embeds=sequence[None],
        position_ids=torch.cat(positions)[None],
        attention_mask={"full_attention": mask[None, None]},
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = stock.lm_head(hidden[0, -len(ids) :])
    return logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_reduced_stream_answers_as_the_stock_model_on_the_reduced_sequence(
    spec: str, dtype: str, tiny_model: LoadTiny, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(dtype)
    whole = whole_units(model)
    made = reduced(model, spec, whole, at_once=4)
    dropped = sum(len(unit.cells) for unit in made) < UNITS * model.adapter.tokens_per_unit
    assert dropped == (spec != "none")
    units = [
        StoredUnit(unit.kv, unit.cells.astype(np.int64) @ np.array([3, 1]), unit.position_span)
        for unit in made
    ]
    tap = LogitsTap(model, monkeypatch)
    result = answer(
        model,
        AnswerRequest(
            question=QUESTION,
            unit_count=UNITS,
            newest_whole=False,
            max_new_tokens=5,
            temperature=0.0,
            ignore_eos=True,
        ),
        ListMemory(units),
    )
    rows = tap.rows[-5:]
    monkeypatch.undo()
    by_keys = spec.startswith("key_norm")
    expected = stock_logits(tiny_path, model, dtype, result.token_ids, whole, made, by_keys)
    assert float((rows - expected).abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_kept_does_not_depend_on_how_many_units_come_at_once(
    spec: str, tiny_model: LoadTiny
) -> None:
    model = tiny_model("float64")
    whole = whole_units(model)
    one, many = reduced(model, spec, whole, 1), reduced(model, spec, whole, UNITS)
    for a, b in zip(one, many, strict=True):
        assert a.cells.tolist() == b.cells.tolist()
        assert float((a.kv.keys - b.kv.keys).abs().max()) < 1e-5
