"""Families with positions of several axes: their streams, their rules, their stock models.

Positions are written down here a second time, from the families' own `get_rope_index`, so nothing
is shared with the engine but weights and units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageTextToText

from kvstore.unit import FIRST_TEXT_ROW
from svc.engine.adapters.base import WholeUnit
from svc.engine.encoder import StreamEncoder
from svc.engine.layout import Cells
from svc.engine.model import LoadedModel
from svc.engine.reducer import ReducedUnit, Reducer
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.window import WindowConfig
from tests.svc.engine import streams
from tests.svc.engine.answer_world import UNLIMITED, ListMemory, StoredUnit
from tests.svc.engine.tiny_qwen import build_qwen3, build_qwen25

GRID = (2, 4)
TIME_STEP = 4
"""Two tokens a second, two frames a unit, one frame a second."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the tests know of a family."""

    name: str
    build: Callable[[Path], Path]
    place: Callable[[Sequence[Cells], int], tuple[list[Tensor], int]]
    """(cells of the whole units, where the first begins) -> each unit's (3, n) positions, and where
    the question stands."""


def _place_qwen25(units: Sequence[Cells], start: int) -> tuple[list[Tensor], int]:
    placed = []
    for index, cells in enumerate(units):
        rows, columns = torch.from_numpy(cells.astype(np.int64)).T
        placed.append(
            start + torch.stack([torch.full_like(rows, TIME_STEP * index), rows, columns])
        )
    return placed, start + max(TIME_STEP * (len(units) - 1) + 1, *GRID)


def _place_qwen3(units: Sequence[Cells], start: int) -> tuple[list[Tensor], int]:
    placed = []
    for cells in units:
        is_text = cells[:, 0] >= FIRST_TEXT_ROW
        lead = int(is_text[:-1].sum())
        columns = []
        for index, (row, column) in enumerate(cells.tolist()):
            if index < lead:
                columns.append([index] * 3)
            elif is_text[index]:
                columns.append([lead + max(GRID)] * 3)
            else:
                columns.append([lead, lead + row, lead + column])
        placed.append(start + torch.tensor(columns).T)
        start += lead + max(GRID) + 1
    return placed, start


QWEN25 = Family(name="qwen2_5_vl", build=build_qwen25, place=_place_qwen25)
QWEN3 = Family(name="qwen3_vl", build=build_qwen3, place=_place_qwen3)


class FamilyMemory(ListMemory):
    """Memory over units as the reducer leaves them."""

    def __init__(self, model: LoadedModel, units: Sequence[ReducedUnit]) -> None:
        stored = [StoredUnit(u.kv, np.arange(len(u.cells)), u.position_span) for u in units]
        super().__init__(stored)
        self.layout = model.adapter
        self._cells = [unit.cells for unit in units]

    def cells(self, units: NDArray[np.int64]) -> Cells:
        return np.concatenate([np.empty((0, 2), np.uint16), *(self._cells[u] for u in units)])


def whole_units(model: LoadedModel, count: int) -> list[WholeUnit]:
    """Return units of a scene that changes in places, at times of one and of two digits."""
    generator = np.random.default_rng(3)
    frame = generator.integers(0, 256, (31, 42, 3), dtype=np.uint8)
    frames = []
    for _ in range(2 * count):
        frame = frame.copy()
        row, column = 8 * generator.integers(0, 4), 8 * generator.integers(0, 5)
        frame[row : row + 8, column : column + 8] = generator.integers(0, 256, 3)
        frames.append(frame)
    times_s = [0.5 + 2.0 * index for index in range(count)]
    return model.adapter.encode(model.adapter.preprocess(frames), times_s)


def reduced(
    model: LoadedModel,
    units: Sequence[WholeUnit],
    spec: str,
    at_once: int,
    window: WindowConfig = UNLIMITED,
) -> list[ReducedUnit]:
    """Run units through a reduction and the text model, `at_once` a pass."""
    reducer = Reducer(ReductionSpec.parse(spec), model.adapter)
    encoder = StreamEncoder(model, window, model.adapter.advance)
    made = []
    for start in range(0, len(units), at_once):
        for unit in reducer.encode(encoder, units[start : start + at_once]):
            reducer.state = unit.state
            made.append(unit)
    return made


def kept_of(whole: WholeUnit, made: ReducedUnit) -> Tensor:
    """Return which of the whole unit's tokens are kept."""
    kept = {tuple(cell) for cell in made.cells.tolist()}
    return torch.tensor([i for i, c in enumerate(whole.cells.tolist()) if tuple(c) in kept])


def stock(path: Path, dtype: str) -> Any:
    """Return the model as anybody would load it."""
    return AutoModelForImageTextToText.from_pretrained(path, dtype=getattr(torch, dtype)).eval()


@torch.inference_mode()
def stock_logits(
    model: LoadedModel,
    plain: Any,
    family: Family,
    whole: Sequence[WholeUnit],
    made: Sequence[ReducedUnit],
    question: str,
    answer_ids: Sequence[int],
) -> Tensor:
    """Return transformers' own logits before each answer token: one forward over what is kept."""
    prefix = model.decoder.embed(model.prompt.prefix_ids)
    prompt = model.prompt.question(question)
    tail = model.decoder.embed([*prompt.token_ids, *answer_ids[:-1]])
    kept = [kept_of(one, other) for one, other in zip(whole, made, strict=True)]
    placed, after = family.place([unit.cells for unit in whole], len(prefix))
    positions = torch.cat(
        [
            torch.arange(len(prefix)).expand(3, -1),
            *(own[:, tokens] for own, tokens in zip(placed, kept, strict=True)),
            torch.arange(after, after + len(tail)).expand(3, -1),
        ],
        dim=1,
    )
    embeds = torch.cat(
        [prefix, *(u.embeds[tokens] for u, tokens in zip(whole, kept, strict=True)), tail]
    )
    extra: dict[str, Any] = {}
    if whole[0].deepstack is not None:
        shown, levels = [torch.zeros(len(prefix), dtype=torch.bool)], []
        for unit, tokens in zip(whole, kept, strict=True):
            picture = torch.from_numpy(unit.cells[tokens.numpy(), 0] < FIRST_TEXT_ROW)
            shown.append(picture)
            assert unit.deepstack is not None
            levels.append(unit.deepstack[:, tokens[picture]])
        shown.append(torch.zeros(len(tail), dtype=torch.bool))
        extra = {
            "visual_pos_masks": torch.cat(shown)[None],
            "deepstack_visual_embeds": list(torch.cat(levels, dim=1)),
        }
    hidden = plain.model.language_model(
        inputs_embeds=embeds[None], position_ids=positions[:, None], use_cache=False, **extra
    ).last_hidden_state
    logits: Tensor = plain.lm_head(hidden[0, -len(answer_ids) :])
    return logits


def frames_of(count: int) -> list[np.ndarray]:
    """Return random frames."""
    return streams.frames(count)
