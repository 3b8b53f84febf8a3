"""A first answer before the first question: what is slow once is slow now, what fails fails now."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvstore.errors import UnitsThinnedError
from kvstore.geometry import Tier
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.layout import Cells, UnitLayout
from svc.engine.model import DTYPES, LoadedModel

_UNIT_COUNT = 4
_NEW_TOKENS = 2


class RandomMemory:
    """A few whole units of random keys and values; see `svc.engine.memory.Memory`."""

    def __init__(self, model: LoadedModel, unit_count: int) -> None:
        """The units are as large as the model makes them."""
        self._model = model
        self.layout: UnitLayout = model.adapter
        self._cells = model.adapter.whole_cells(model.adapter.tokens_per_unit)
        self.unit_count = unit_count
        self.first_unit = 0
        self.token_counts = np.full(unit_count, model.adapter.tokens_per_unit, np.int64)
        self.position_spans = np.full(unit_count, model.adapter.position_span, np.int64)
        self.repeats = np.zeros(unit_count, np.bool_)
        self.tiers: Mapping[int, Tier] = dict.fromkeys(range(unit_count), Tier.HOT)
        self.coarsened: Set[int] = frozenset()

    def meet(self, thinned: UnitsThinnedError) -> None:
        """Raises it: nothing is thinned here."""
        raise thinned

    def cells(self, units: NDArray[np.int64]) -> Cells:
        """Returns the cells of whole units."""
        return np.tile(self._cells, (len(units), 1))

    def scores(self, layer: int, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns scores that prefer the newer unit."""
        return np.arange(self.unit_count, dtype=np.float32)

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns random keys and values."""
        model = self._model
        shape = (
            len(units) * model.adapter.tokens_per_unit,
            model.kv_head_count,
            model.head_dim,
        )
        dtype = DTYPES[model.element]
        return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


def warm_up(engine: AnswerEngine, model: LoadedModel) -> None:
    """Answers one question about nothing.

    Raises:
        Exception: whatever keeps the engine from answering.
    """
    request = AnswerRequest(
        question="What is this?", max_new_tokens=_NEW_TOKENS, ignore_eos=True, temperature=0.0
    )
    answering = engine.start(request, RandomMemory(model, _UNIT_COUNT))
    while not answering.finished:
        engine.step([answering])
    if answering.error is not None:
        raise answering.error
