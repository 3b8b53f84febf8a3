"""A stream encoded unit after unit equals one dense masked forward, written independently."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from svc.engine.encoder import StreamEncoder, UnitEmbeds
from svc.engine.model import LoadedModel
from svc.engine.window import WindowConfig
from svc.engine.window_cache import UnitKV
from tests.svc.engine.dense import DenseWindow, Faults
from tests.svc.engine.streams import EXACT, TOLERANCE, difference, full_units, push, ragged_units
from tests.svc.engine.tiny import LAYER_COUNT

Models = Callable[[str], LoadedModel]
UnitMaker = Callable[[LoadedModel, int], list[UnitEmbeds]]

WINDOWS = [
    WindowConfig(window_tokens=20, window_positions=1000),  # tokens bind
    WindowConfig(window_tokens=1000, window_positions=40),  # positions bind
    WindowConfig(window_tokens=8, window_positions=1000),  # a whole unit does not fit
    WindowConfig(window_tokens=1 << 20, window_positions=1 << 20),  # never full
]


def dense(
    model: LoadedModel, units: Sequence[UnitEmbeds], config: WindowConfig, faults: Faults
) -> list[UnitKV]:
    """Return what the reference makes of the units, in one call over the whole stream."""
    prefix = model.decoder.embed(model.prompt.prefix_ids)
    session = DenseWindow(len(prefix), units, config, 1e6, faults)
    model.decoder.run(torch.cat([prefix, *(unit.embeds for unit in units)]), session)
    counts = [len(prefix), *(len(unit.positions) for unit in units)]
    keys = torch.split(torch.stack(session.keys), counts, dim=1)
    values = torch.split(torch.stack(session.values), counts, dim=1)
    return [UnitKV(keys=k, values=v) for k, v in zip(keys[1:], values[1:], strict=True)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("config", WINDOWS, ids=str)
@pytest.mark.parametrize("make_units", [full_units, ragged_units])
@pytest.mark.parametrize("at_once", [1, 5])
def test_sliding_window_equals_dense_masked_forward(
    tiny_model: Models, make_units: UnitMaker, config: WindowConfig, dtype: str, at_once: int
) -> None:
    model = tiny_model(dtype)
    units = make_units(model, 14)
    made = push(StreamEncoder(model, config), units, at_once)
    tolerance = EXACT[dtype] if at_once == 1 else TOLERANCE[dtype]
    assert difference(made, dense(model, units, config, Faults())) < tolerance


@pytest.mark.parametrize(
    "faults",
    [
        Faults(mask_blind_to_window=True),
        Faults(position_offset=1),
        Faults(window_unit_offset=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("at_once", [1, 5])
def test_the_comparison_notices_a_broken_window(
    tiny_model: Models, faults: Faults, at_once: int
) -> None:
    model = tiny_model("float32")
    units, config = ragged_units(model, 14), WINDOWS[0]
    made = push(StreamEncoder(model, config), units, at_once)
    assert difference(made, dense(model, units, config, faults)) > 1e-2


def test_weights_of_the_tiny_model_make_attention_matter(tiny_model: Models) -> None:
    model = tiny_model("float32")
    units = full_units(model, 6)
    alone = [StreamEncoder(model, WINDOWS[0]).encode([unit])[0] for unit in units]
    together = push(StreamEncoder(model, WINDOWS[0]), units, 1)
    assert len(together[0].keys) == LAYER_COUNT
    assert difference(together[:1], alone[:1]) == 0.0
    assert difference(together[1:], alone[1:]) > 0.1
