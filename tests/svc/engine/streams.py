"""Streams of units to push through the encoder, and how far two results lie apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from svc.engine.encoder import StreamEncoder, UnitEmbeds
from svc.engine.layout import grid_cells
from svc.engine.model import LoadedModel
from svc.engine.window_cache import UnitKV

TOLERANCE = {"float64": 5e-6, "float32": 2e-5}
"""Of keys and values around 1. Units that share a pass share an origin of positions, and models
compute angles in float32 whatever their dtype: hence no less for float64."""
EXACT = {"float64": 1e-12, "float32": 2e-5}
"""When every unit has a pass, and so an origin, of its own."""


def frames(count: int, *, seed: int = 0) -> list[np.ndarray]:
    """Return random RGB frames, not of the model's size."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (31, 42, 3), dtype=np.uint8) for _ in range(count)]


def full_units(model: LoadedModel, count: int) -> list[UnitEmbeds]:
    """Return units of random frames with every token kept."""
    adapter = model.adapter
    pixels = adapter.preprocess(frames(count * adapter.frames_per_unit))
    positions = torch.from_numpy(adapter.local_positions(grid_cells(adapter.grid), np.ones(1)))[0]
    return [
        UnitEmbeds(embeds=unit.embeds, positions=positions, position_span=unit.position_span)
        for unit in adapter.encode(pixels, [0.0] * count)
    ]


def ragged_units(model: LoadedModel, count: int) -> list[UnitEmbeds]:
    """Return units of which random tokens, one to all, are kept; first tokens may be missing."""
    generator = np.random.default_rng(1)
    units = []
    for unit in full_units(model, count):
        total = len(unit.positions)
        size = int(generator.integers(1, total + 1))
        kept = torch.from_numpy(np.sort(generator.choice(total, size, replace=False)))
        units.append(
            UnitEmbeds(
                embeds=unit.embeds[kept],
                positions=unit.positions[kept],
                position_span=unit.position_span,
            )
        )
    return units


def push(encoder: StreamEncoder, units: Sequence[UnitEmbeds], at_once: int) -> list[UnitKV]:
    """Encode the units, `at_once` in each pass."""
    made: list[UnitKV] = []
    for start in range(0, len(units), at_once):
        made += encoder.encode(units[start : start + at_once])
    return made


def difference(actual: Sequence[UnitKV], expected: Sequence[UnitKV]) -> float:
    """Return the largest absolute difference between keys and between values."""
    pairs = list(zip(actual, expected, strict=True))
    return max(
        max(float((a.keys - e.keys).abs().max()), float((a.values - e.values).abs().max()))
        for a, e in pairs
    )
