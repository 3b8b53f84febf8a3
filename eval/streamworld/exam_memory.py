"""Exams encoded in this process, as the service would encode them, and answerable as of any time.

The engine's own encoder, reduction and prompt; in place of the store, lists: what is measured here
is what answers are made of, not how it is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.streamworld.clip_file import read_mp4, write_mp4
from eval.streamworld.exam import Exam
from kvstore.errors import UnitsThinnedError
from kvstore.geometry import Geometry, Tier
from svc.engine.adapters.base import WholeUnit
from svc.engine.encoder import StreamEncoder
from svc.engine.layout import Cells, UnitLayout
from svc.engine.model import LoadedModel
from svc.engine.reducer import ReducedUnit, Reducer
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.unit_rows import UnitRows
from svc.engine.window import WindowConfig

_VISION_BATCH = 64
_ENCODE_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedStream:
    """All units of a stream; the tokens of a unit lie behind those of the one before."""

    keys: Tensor
    """(layers, tokens, kv_heads, head_dim), before RoPE."""
    values: Tensor
    cells: Cells
    """(tokens, 2)"""
    layout: UnitLayout
    token_counts: NDArray[np.int64]
    """(units,)"""
    position_span: int
    all_places: bool
    """Whether the reduction keeps units whole now and then; see `svc.engine.unit_rows`."""

    @property
    def rows(self) -> NDArray[np.float32]:
        """(layers, units, kv_heads * head_dim): what the service's index has of each unit."""
        layers, _, heads, dim = self.keys.shape
        geometry = Geometry(
            layer_count=layers, kv_head_count=heads, head_dim=dim, element="float32"
        )
        make = UnitRows(geometry, all_places=self.all_places)
        parts = self.keys.float().split(self.token_counts.tolist(), dim=1)
        cells = np.split(self.cells, np.cumsum(self.token_counts)[:-1])
        return np.stack(
            [make.of(own, part.numpy()) for own, part in zip(cells, parts, strict=True)], axis=1
        )


@dataclass(slots=True, kw_only=True, eq=False)
class StreamMemory:
    """The first `unit_count` units of a stream; see `svc.engine.memory.Memory`."""

    stream: EncodedStream
    index: NDArray[np.float32]
    """The stream's `rows`."""
    unit_count: int
    first_unit: int = 0
    tiers: Mapping[int, Tier] = field(default_factory=dict)
    coarsened: Set[int] = frozenset()

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """(unit_count,): kept tokens of each unit."""
        return self.stream.token_counts[: self.unit_count]

    @property
    def position_spans(self) -> NDArray[np.int64]:
        """(unit_count,): positions each unit takes."""
        return np.full(self.unit_count, self.stream.position_span)

    @property
    def repeats(self) -> NDArray[np.bool_]:
        """(unit_count,): units that kept one token of several."""
        repeats: NDArray[np.bool_] = self.token_counts == 1
        return repeats

    def meet(self, thinned: UnitsThinnedError) -> None:
        """Never happens: nothing thins a list."""
        raise thinned

    @property
    def layout(self) -> UnitLayout:
        """Where the tokens of a unit stand."""
        return self.stream.layout

    def cells(self, units: NDArray[np.int64]) -> Cells:
        """Return each kept token's cell, unit after unit."""
        cells: Cells = self.stream.cells[self._tokens(units)]
        return cells

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the inner product of `query` with each unit's mean key."""
        scores: NDArray[np.float32] = self.index[layer, : self.unit_count] @ query
        return scores

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return keys before RoPE and values of the units, in the order given."""
        tokens = torch.from_numpy(self._tokens(units))
        return self.stream.keys[layer, tokens], self.stream.values[layer, tokens]

    def _tokens(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        counts = self.stream.token_counts
        starts = np.cumsum(counts) - counts
        parts = [np.arange(starts[unit], starts[unit] + counts[unit]) for unit in units.tolist()]
        return np.concatenate([np.empty(0, np.int64), *parts])


def whole_units(model: LoadedModel, exam: Exam, *, crf: int = 23) -> list[WholeUnit]:
    """Return an exam's frames, through H.264 at quality `crf`, as the vision tower leaves them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(exam.clip, path, fps=exam.fps, crf=crf)
        frames, _ = read_mp4(path)
    return [
        unit
        for start in range(0, len(frames), _VISION_BATCH)
        for unit in _seen(model, list(frames[start : start + _VISION_BATCH]))
    ]


def encode_stream(
    model: LoadedModel, window: WindowConfig, units: list[WholeUnit], spec: ReductionSpec
) -> EncodedStream:
    """Run units through the reduction and the text model, in order."""
    kept = list(_reduced(model, window, units, spec))
    return EncodedStream(
        keys=torch.cat([unit.kv.keys for unit in kept], 1),
        values=torch.cat([unit.kv.values for unit in kept], 1),
        cells=np.concatenate([unit.cells for unit in kept]),
        layout=model.adapter,
        token_counts=np.array([len(unit.cells) for unit in kept], np.int64),
        position_span=model.adapter.position_span,
        all_places=spec.keeps_units_whole,
    )


def _seen(model: LoadedModel, frames: list[NDArray[np.uint8]]) -> list[WholeUnit]:
    return model.adapter.encode(model.adapter.preprocess(frames), [0.0] * len(frames))


def _reduced(
    model: LoadedModel, window: WindowConfig, units: list[WholeUnit], spec: ReductionSpec
) -> Iterator[ReducedUnit]:
    reducer = Reducer(spec, model.adapter)
    encoder = StreamEncoder(model, window)
    for start in range(0, len(units), _ENCODE_BATCH):
        for unit in reducer.encode(encoder, units[start : start + _ENCODE_BATCH]):
            reducer.state = unit.state
            yield unit
