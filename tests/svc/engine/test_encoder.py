"""What a unit becomes depends on its window alone, not on how it was pushed or interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from svc.engine.encoder import StreamEncoder, UnitEmbeds, WindowUnit
from svc.engine.model import LoadedModel
from svc.engine.window import WindowConfig, window_start
from svc.engine.window_cache import UnitKV
from tests.svc.engine.streams import EXACT, TOLERANCE, difference, full_units, push, ragged_units
from tests.svc.engine.tiny import LAYER_COUNT

Models = Callable[[str], LoadedModel]
CONFIG = WindowConfig(window_tokens=25, window_positions=60)
UNIT_COUNT = 21
CRASH = 13
"""Units that were stored before the interruption."""


def stored(units: Sequence[UnitEmbeds], made: Sequence[UnitKV]) -> list[WindowUnit]:
    """Return the units as a store gives them back."""
    return [
        WindowUnit(
            keys=kv.keys.clone(),
            values=kv.values.clone(),
            positions=unit.positions,
            position_span=unit.position_span,
        )
        for unit, kv in zip(units, made, strict=True)
    ]


def resumed(
    model: LoadedModel, units: Sequence[UnitEmbeds], window: Sequence[WindowUnit]
) -> list[UnitKV]:
    """Return what a new encoder makes of the units after the crash."""
    encoder = StreamEncoder(model, CONFIG)
    encoder.restore(window)
    return push(encoder, units[CRASH:], 3)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("make_units", [full_units, ragged_units])
def test_units_pushed_singly_or_many_at_once_become_the_same(
    tiny_model: Models, make_units: Callable[[LoadedModel, int], list[UnitEmbeds]], dtype: str
) -> None:
    model = tiny_model(dtype)
    units = make_units(model, UNIT_COUNT)
    singly = push(StreamEncoder(model, CONFIG), units, 1)
    for at_once in (2, 8, UNIT_COUNT):
        together = push(StreamEncoder(model, CONFIG), units, at_once)
        assert difference(together, singly) < TOLERANCE[dtype]


def test_units_too_large_to_share_an_attention_call_become_the_same(
    tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("float64")
    units = ragged_units(model, UNIT_COUNT)
    singly = push(StreamEncoder(model, CONFIG), units, 1)
    for group_tokens in (1, 12, 30):
        monkeypatch.setattr("svc.engine.window_cache._GROUP_TOKENS", group_tokens)
        together = push(StreamEncoder(model, CONFIG), units, 8)
        assert difference(together, singly) < TOLERANCE["float64"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_restored_stream_goes_on_as_if_never_interrupted(tiny_model: Models, dtype: str) -> None:
    model = tiny_model(dtype)
    units = ragged_units(model, UNIT_COUNT)
    made = push(StreamEncoder(model, CONFIG), units, 3)
    before = stored(units[:CRASH], made[:CRASH])
    start = window_start(
        [len(unit.positions) for unit in before], [unit.position_span for unit in before], CONFIG
    )
    assert 0 < start < CRASH - 1
    assert difference(resumed(model, units, before[start:]), made[CRASH:]) < TOLERANCE[dtype]
    assert difference(resumed(model, units, before), made[CRASH:]) < TOLERANCE[dtype]


def test_the_comparison_notices_a_wrong_window_after_a_restart(tiny_model: Models) -> None:
    model = tiny_model("float32")
    units = ragged_units(model, UNIT_COUNT)
    made = push(StreamEncoder(model, CONFIG), units, 3)
    window = stored(units[:CRASH], made[:CRASH])
    last = window[-1]
    wrong_windows = {
        "a unit is missing": window[:-2] + window[-1:],
        "one position too far": [*window[:-1], replace(last, position_span=last.position_span + 1)],
        "order": [*window[:-2], window[-1], window[-2]],
        "values of another unit": [
            *window[:-1],
            replace(last, values=window[0].values[:, :1].expand_as(last.values)),
        ],
    }
    for what, wrong in wrong_windows.items():
        assert difference(resumed(model, units, wrong), made[CRASH:]) > 1e-2, what


def test_streams_that_share_a_model_do_not_touch_each_other(tiny_model: Models) -> None:
    model = tiny_model("float64")
    first, second = full_units(model, 8), ragged_units(model, 8)
    alone = [push(StreamEncoder(model, CONFIG), units, 1) for units in (first, second)]
    encoders = [StreamEncoder(model, CONFIG), StreamEncoder(model, CONFIG)]
    mixed: list[list[UnitKV]] = [[], []]
    for pair in zip(first, second, strict=True):
        for made, encoder, unit in zip(mixed, encoders, pair, strict=True):
            made += encoder.encode([unit])
    assert difference(mixed[0], alone[0]) == difference(mixed[1], alone[1]) == 0.0


def test_memory_does_not_grow_with_the_stream(tiny_model: Models) -> None:
    model = tiny_model("float32")
    units = full_units(model, 4)
    encoder = StreamEncoder(model, CONFIG)
    for _ in range(60):
        encoder.encode(units)
        assert encoder.capacity_tokens <= 1.25 * (CONFIG.window_tokens + 4 * 9)
        assert encoder.window_token_count <= CONFIG.window_tokens
    assert encoder.window_unit_count == CONFIG.window_tokens // 9


def test_a_pass_that_fails_leaves_the_stream_as_it_was(
    tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("float64")
    units = ragged_units(model, UNIT_COUNT)
    expected = push(StreamEncoder(model, CONFIG), units, 1)
    encoder = StreamEncoder(model, CONFIG)
    made = push(encoder, units[:CRASH], 1)
    broken = replace(units[CRASH], embeds=units[CRASH].embeds[:, :-1])
    with pytest.raises(RuntimeError):
        encoder.encode([*units[CRASH : CRASH + 3], broken])
    made += push(encoder, units[CRASH:], 1)
    assert difference(made, expected) < EXACT["float64"]


def test_made_keys_and_values_have_the_stores_shape_and_memory_of_their_own(
    tiny_model: Models,
) -> None:
    model = tiny_model("float32")
    made = StreamEncoder(model, CONFIG).encode(full_units(model, 3))
    for unit in made:
        assert unit.keys.shape == unit.values.shape == (LAYER_COUNT, 9, 2, 16)
        assert unit.keys.is_contiguous()
        assert unit.keys.untyped_storage().nbytes() == unit.keys.nbytes


def test_positions_that_do_not_fit_the_unit_are_refused(tiny_model: Models) -> None:
    model = tiny_model("float32")
    unit = full_units(model, 1)[0]
    encoder = StreamEncoder(model, CONFIG)
    bad_positions = [
        torch.arange(8),  # one too few
        torch.arange(9) + 1,  # beyond the span
        torch.arange(9) - 1,
        torch.arange(9).flip(0),
        torch.zeros(9, dtype=torch.int64),
    ]
    for positions in bad_positions:
        with pytest.raises(ValueError, match="positions"):
            encoder.encode([replace(unit, positions=positions)])
    with pytest.raises(ValueError, match="at least one token"):
        encoder.encode([replace(unit, embeds=unit.embeds[:0], positions=unit.positions[:0])])
    assert encoder.encode([]) == []


def test_only_a_new_encoder_can_be_restored(tiny_model: Models) -> None:
    model = tiny_model("float32")
    units = full_units(model, 2)
    encoder = StreamEncoder(model, CONFIG)
    made = encoder.encode(units)
    with pytest.raises(RuntimeError, match="new encoder"):
        encoder.restore(stored(units, made))
