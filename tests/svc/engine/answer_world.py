"""Streams encoded with the tiny model, their memory, and the same model as transformers runs it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from kvstore.errors import UnitsThinnedError
from kvstore.geometry import Tier
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.answering import Answering
from svc.engine.encoder import StreamEncoder, UnitEmbeds
from svc.engine.layout import Cells, UnitLayout, grid_cells
from svc.engine.memory import Memory
from svc.engine.model import LoadedModel
from svc.engine.window import WindowConfig
from svc.engine.window_cache import UnitKV
from tests.svc.engine import streams

UNLIMITED = WindowConfig(window_tokens=1 << 20, window_positions=1 << 20)
QUESTION = "What colour was the circle?"
DTYPES = ("float64", "float32")
GRID_SIDE = 3
TOLERANCE = {"float64": 1e-6, "float32": 2e-5}
"""Largest difference of logits that is rounding; logits lie around 5."""


@dataclass(frozen=True, eq=False)
class StoredUnit:
    """A unit as a store would hold it."""

    kv: UnitKV
    positions: NDArray[np.int64]
    span: int


class ListMemory:
    """Memory over units in a list; mean keys are computed from them, as an index holds them."""

    def __init__(
        self, units: Sequence[StoredUnit], *, first_unit: int = 0, side: int = GRID_SIDE
    ) -> None:
        self.units = list(units)
        self.first_unit = first_unit
        self.layout: UnitLayout = TinyLayout(side)
        self.tiers: Mapping[int, Tier] = {}
        self.coarsened: Set[int] = frozenset()

    def meet(self, thinned: UnitsThinnedError) -> None:
        raise thinned

    @property
    def unit_count(self) -> int:
        return len(self.units)

    @property
    def token_counts(self) -> NDArray[np.int64]:
        return np.array([len(unit.positions) for unit in self.units], np.int64)

    @property
    def position_spans(self) -> NDArray[np.int64]:
        return np.array([unit.span for unit in self.units], np.int64)

    @property
    def repeats(self) -> NDArray[np.bool_]:
        return (self.token_counts == 1) & (self.position_spans > 1)

    def cells(self, units: NDArray[np.int64]) -> Cells:
        side = self.layout.grid[1]
        found = [cells_of(self.units[unit].positions, side) for unit in units]
        return np.concatenate([np.empty((0, 2), np.uint16), *found])

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = np.stack([mean_key(unit.kv, layer) for unit in self.units]) @ query
        scores[: self.first_unit] = -np.inf
        return scores

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        chosen = [self.units[unit].kv for unit in units]
        return (
            torch.cat([kv.keys[layer] for kv in chosen]),
            torch.cat([kv.values[layer] for kv in chosen]),
        )


def cells_of(positions: NDArray[np.int64], side: int = GRID_SIDE) -> Cells:
    """Return the cells at positions of a unit of a square grid, in reading order."""
    return grid_cells((side, side))[positions]


class TinyLayout:
    """Where the tokens of a square grid stand, written down a second time."""

    advance = (1,)
    overhang = 0

    def __init__(self, side: int = GRID_SIDE) -> None:
        self.side = side
        self.grid = (side, side)
        self.tokens_per_unit = self.position_span = side * side

    def whole_cells(self, token_count: int) -> Cells:
        return grid_cells(self.grid)

    def local_positions(self, cells: Cells, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        return (cells.astype(np.int64) @ np.array([self.side, 1]))[None]

    def question_offset(self, spans: NDArray[np.int64]) -> int:
        return int(spans.sum())


def mean_key(kv: UnitKV, layer: int) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = kv.keys[layer].double().mean(dim=0).flatten().float().numpy()
    return mean


def encode(
    model: LoadedModel, units: Sequence[UnitEmbeds], window: WindowConfig = UNLIMITED
) -> list[StoredUnit]:
    """Encode a stream and keep what a store would."""
    made = StreamEncoder(model, window).encode(units)
    return [
        StoredUnit(kv, unit.positions.numpy(), unit.position_span)
        for kv, unit in zip(made, units, strict=True)
    ]


def stock_model(path: Path, dtype: str) -> Any:
    """Return the model as anybody would load it: transformers' own attention and generate."""
    return LlavaOnevisionForConditionalGeneration.from_pretrained(
        path, dtype=getattr(torch, dtype)
    ).eval()


def stock_inputs(model: LoadedModel, frame_count: int, question: str) -> dict[str, Tensor]:
    """Return the whole prompt over `streams.frames` as transformers' generate takes it."""
    adapter = model.adapter
    prompt = model.prompt.question(question)
    video = [adapter.video_token_id] * (frame_count * adapter.tokens_per_unit + 1)
    ids = torch.tensor([[*model.prompt.prefix_ids, *video, *prompt.token_ids]])
    pixels = adapter.preprocess(streams.frames(frame_count))[:, 0][None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixels.to(model.decoder.dtype),
    }


def with_generation_config(model: LoadedModel, **settings: Any) -> LoadedModel:
    """Return the model with other generation settings."""
    config = copy.deepcopy(model.generation_config)
    config.update(**settings)
    return dataclasses.replace(model, generation_config=config)


def finish(engine: AnswerEngine, *answerings: Answering) -> None:
    """Step until all are finished."""
    while any(not answering.finished for answering in answerings):
        engine.step(answerings)


def answer(model: LoadedModel, request: AnswerRequest, memory: Memory) -> AnswerResult:
    """Return the answer to one request alone."""
    engine = AnswerEngine(model)
    answering = engine.start(request, memory)
    finish(engine, answering)
    if answering.error is not None:
        raise answering.error
    assert answering.result is not None
    return answering.result


class LogitsTap:
    """Records every row of logits that the engine asks the model for, call by call."""

    def __init__(self, model: LoadedModel, monkeypatch: Any) -> None:
        self.calls: list[Tensor] = []
        original = model.decoder.logits

        def tapped(hidden: Tensor) -> Tensor:
            logits = original(hidden)
            self.calls.append(logits.clone())
            return logits

        monkeypatch.setattr(model.decoder, "logits", tapped)

    @property
    def rows(self) -> Tensor:
        """All rows of all calls, in order."""
        return torch.cat(self.calls)
