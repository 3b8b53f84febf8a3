"""Families whose positions have three axes equal their stock models: the oracles, again."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from svc.engine.adapters.base import StreamShape
from svc.engine.answer_request import AnswerRequest
from svc.engine.layout import pictured
from svc.engine.model import LoadedModel, ModelConfig, load_model
from svc.engine.window import WindowConfig
from tests.svc.engine.answer_world import DTYPES, QUESTION, TOLERANCE, LogitsTap, answer
from tests.svc.engine.family_world import (
    GRID,
    QWEN3,
    QWEN25,
    Family,
    FamilyMemory,
    frames_of,
    reduced,
    stock,
    stock_logits,
    whole_units,
)

UNITS, STEPS = 7, 8
Load = Callable[[str], LoadedModel]
SPECS = ["none", "last_kept:0.9", "budget:0.4"]


@pytest.fixture(scope="module", params=[QWEN25, QWEN3], ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(scope="module")
def path(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.build(tmp_path_factory.mktemp(family.name))


@pytest.fixture(scope="module")
def load(path: Path) -> Load:
    return cache(lambda dtype: load_model(ModelConfig(path=str(path), dtype=dtype), vision=True))


def request(**fields: Any) -> AnswerRequest:
    defaults: dict[str, Any] = {
        "question": QUESTION, "unit_count": 100, "newest_whole": False, "max_new_tokens": STEPS,
        "temperature": 0.0, "ignore_eos": True, "repeats_searched": True,
    }  # fmt: skip
    return AnswerRequest(**(defaults | fields))


def far(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one.double() - other.double()).abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("at_once", [1, 4])
def test_a_stream_answers_as_the_stock_model_on_what_is_kept_of_it(
    at_once: int,
    spec: str,
    dtype: str,
    family: Family,
    path: Path,
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load(dtype)
    whole = whole_units(model, UNITS)
    made = reduced(model, whole, spec, at_once)
    dropped = any(len(a.cells) < len(b.cells) for a, b in zip(made, whole, strict=True))
    assert dropped == (spec != "none")
    tap = LogitsTap(model, monkeypatch)
    result = answer(model, request(), FamilyMemory(model, made))
    expected = stock_logits(
        model, stock(path, dtype), family, whole, made, QUESTION, result.token_ids
    )
    assert far(tap.rows[-STEPS:], expected) < TOLERANCE[dtype]
    assert expected.argmax(-1).tolist() == list(result.token_ids)


def test_positions_of_units_are_those_that_transformers_gives_them(
    family: Family, path: Path, load: Load
) -> None:
    model, plain = load("float32"), stock(path, "float32")
    whole = whole_units(model, UNITS)
    ids = list(model.prompt.prefix_ids)
    start, config = len(ids), plain.config
    if family is QWEN25:
        ids += [config.video_token_id] * sum(len(unit.cells) for unit in whole)
        times = {"second_per_grid_ts": torch.tensor([2.0])}
    else:
        times = {}
        for unit in whole:
            lead = len(unit.cells) - GRID[0] * GRID[1] - 1
            ids += [7] * lead + [config.video_token_id] * (GRID[0] * GRID[1]) + [8]
    types = torch.tensor([ids]) == config.video_token_id
    found, _ = plain.model.get_rope_index(
        torch.tensor([ids]),
        types.int() * 2,
        video_grid_thw=torch.tensor([[UNITS, 2 * GRID[0], 2 * GRID[1]]]),
        **times,
    )
    cells = np.concatenate([unit.cells for unit in whole])
    counts = np.array([len(unit.cells) for unit in whole])
    spans = np.array([unit.position_span for unit in whole])
    local = model.adapter.local_positions(cells, counts)
    begins = np.outer(model.adapter.advance, np.repeat(np.cumsum(spans) - spans, counts))
    assert (start + begins + local).tolist() == found[:, 0, start:].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_that_read_other_units_equal_stock_attention_over_a_cache_built_by_hand(
    dtype: str, family: Family, path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(dtype)
    whole = whole_units(model, 5)  # of equal length: a cache holds as much in every layer
    made = reduced(model, whole, "none", 2)
    tap = LogitsTap(model, monkeypatch)
    result = answer(model, request(unit_count=3), FamilyMemory(model, made))
    assert len({tuple(layer.tolist()) for layer in result.layer_units}) > 1
    plain = stock(path, dtype)
    text_model, first = plain.get_decoder(), model.prefix.token_count
    cache, after = DynamicCache(config=text_model.config), 0
    for layer, chosen in enumerate(result.layer_units):
        placed, after = family.place([whole[unit].cells for unit in chosen], first)
        positions = torch.cat([torch.arange(first).expand(3, -1), *placed], dim=1)
        keys = torch.cat(
            [model.prefix.keys[layer]] + [made[u].kv.keys[layer].transpose(0, 1) for u in chosen],
            dim=1,
        )[None]
        values = torch.cat(
            [model.prefix.values[layer]]
            + [made[u].kv.values[layer].transpose(0, 1) for u in chosen],
            dim=1,
        )[None]
        cos, sin = text_model.rotary_emb(keys, positions[:, None])
        half = keys.shape[-1] // 2
        turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
        cache.update(keys * cos[:, None] + turned * sin[:, None], values, layer)
    embeds = model.decoder.embed(model.prompt.question(QUESTION).token_ids)[None]
    for step, token_id in enumerate(result.token_ids):
        places = torch.arange(after, after + embeds.shape[1]).expand(3, 1, -1)
        with torch.inference_mode():
            hidden = text_model(
                inputs_embeds=embeds, position_ids=places, past_key_values=cache
            ).last_hidden_state
            expected = plain.lm_head(hidden[0, -1:])
        assert far(tap.rows[-STEPS:][step : step + 1], expected) < TOLERANCE[dtype]
        after += embeds.shape[1]
        embeds = model.decoder.embed([token_id])[None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_once", [1, 4])
def test_a_unit_sees_its_window_as_if_the_stream_began_with_it(
    at_once: int, dtype: str, family: Family, path: Path, load: Load
) -> None:
    """Without what lies before its window, as positions are counted from there. In deeper layers
    the window's own keys know of more, so they are given as the stream made them."""
    model, plain = load(dtype), stock(path, dtype)
    whole = whole_units(model, 8)
    span = whole[0].position_span
    window = WindowConfig(window_tokens=2 * len(whole[-1].cells), window_positions=1 << 20)
    made = reduced(model, whole, "none", at_once, window)
    text_model, first, newest = plain.get_decoder(), model.prefix.token_count, 7
    seen = [newest - 2, newest - 1]
    placed, _ = family.place([whole[u].cells for u in [*seen, newest]], first)
    assert span > 0
    cache = DynamicCache(config=text_model.config)
    positions = torch.cat([torch.arange(first).expand(3, -1), *placed[:2]], dim=1)
    for layer in range(model.layer_count):
        keys = torch.cat(
            [model.prefix.keys[layer]] + [made[u].kv.keys[layer].transpose(0, 1) for u in seen], 1
        )[None]
        values = torch.cat(
            [model.prefix.values[layer]] + [made[u].kv.values[layer].transpose(0, 1) for u in seen],
            1,
        )[None]
        cos, sin = text_model.rotary_emb(keys, positions[:, None])
        half = keys.shape[-1] // 2
        turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
        cache.update(keys * cos[:, None] + turned * sin[:, None], values, layer)
    unit, extra = whole[newest], {}
    if unit.deepstack is not None:
        picture = torch.from_numpy(pictured(unit.cells))
        extra = {
            "visual_pos_masks": picture[None],
            "deepstack_visual_embeds": list(unit.deepstack[:, picture]),
        }
    with torch.inference_mode():
        text_model(
            inputs_embeds=unit.embeds[None],
            position_ids=placed[2][:, None],
            past_key_values=cache,
            **extra,
        )
    count = len(unit.cells)
    for layer in range(model.layer_count):
        values = cache.layers[layer].values[0, :, -count:].transpose(0, 1)
        assert far(made[newest].kv.values[layer], values) < 1e-4


def test_units_do_not_depend_on_how_many_come_at_once(family: Family, load: Load) -> None:
    model = load("float64")
    pixels = model.adapter.preprocess(frames_of(8))
    together = model.adapter.encode(pixels, [0.5, 2.5, 4.5, 6.5])
    for index, unit in enumerate(together):
        (alone,) = model.adapter.encode(pixels[index : index + 1], [0.5 + 2 * index])
        assert far(unit.embeds, alone.embeds) < 1e-12
        if unit.deepstack is not None:
            assert alone.deepstack is not None
            assert far(unit.deepstack, alone.deepstack) < 1e-12
            assert (
                float(unit.deepstack[:, ~torch.from_numpy(pictured(unit.cells))].abs().max()) == 0
            )
    with pytest.raises(ValueError, match="whole units of 2"):
        model.adapter.preprocess(frames_of(3))


def test_pictures_are_what_the_stock_model_makes_of_the_whole_video(path: Path, load: Load) -> None:
    model, plain = load("float64"), stock(path, "float64")
    pixels = model.adapter.preprocess(frames_of(8))
    units = model.adapter.encode(pixels, [0.5, 2.5, 4.5, 6.5])
    rows, *grid = Qwen3VLVideoProcessor.patchify(None, pixels.flatten(0, 1)[None], 4, 2, 2)
    with torch.inference_mode():
        seen = plain.model.get_video_features(rows[0].double(), torch.tensor([grid]))
    shown = [torch.from_numpy(pictured(unit.cells)) for unit in units]
    ours = torch.cat([unit.embeds[own] for unit, own in zip(units, shown, strict=True)])
    assert far(ours, seen.pooler_output[0]) < 1e-12
    for level, expected in enumerate(getattr(seen, "deepstack_features", [])):
        parts = []
        for unit, own in zip(units, shown, strict=True):
            assert unit.deepstack is not None
            parts.append(unit.deepstack[level, own])
        assert far(torch.cat(parts), torch.cat(tuple(expected))) < 1e-12


def test_patches_are_cut_as_transformers_cuts_them(load: Load) -> None:
    adapter = load("float32").adapter
    pixels = adapter.preprocess(frames_of(6))
    geometry: Any = adapter._geometry  # type: ignore[attr-defined]
    ours, grid_thw = geometry.patches(pixels)
    expected, *grid = Qwen3VLVideoProcessor.patchify(None, pixels.flatten(0, 1)[None], 4, 2, 2)
    assert torch.equal(ours, expected[0])
    assert grid_thw.tolist() == [grid]


def test_frames_are_sized_by_shape_and_budget(load: Load) -> None:
    adapter = load("float32").adapter
    assert adapter.grid == GRID
    tall = adapter.shaped(StreamShape(frame_height=400, frame_width=100))
    assert tall.grid == (6, 1)
    small = adapter.shaped(StreamShape(unit_tokens=2))
    assert small.grid[0] * small.grid[1] <= 2
    assert (small.frame_height, small.frame_width) == tuple(8 * side for side in small.grid)
    with pytest.raises(ValueError, match="factor of at most 200"):
        adapter.shaped(StreamShape(frame_height=1, frame_width=500))


def test_a_unit_without_a_vision_tower_cannot_be_encoded_but_questions_are_answered(
    path: Path,
) -> None:
    model = load_model(ModelConfig(path=str(path)), vision=False)
    with pytest.raises(RuntimeError, match="vision=False"):
        model.adapter.encode(model.adapter.preprocess(frames_of(2)), [0.5])
    assert model.adapter.question_embeds([5]).shape == (1, 64)
