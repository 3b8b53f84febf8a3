from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from svc.engine.model import LoadedModel
from svc.engine.tables import PositionTables
from tests.svc.engine.answer_world import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "positions",
    [
        np.arange(7),
        np.arange(900, 1100),  # over what is held at first
        np.array([5, 0, 5, 3000, 17]),
        np.array([40, 41, 43, 44]),
        np.array([32_000]),
        np.array([], np.int64),
    ],
)
def test_tables_looked_up_equal_tables_computed(
    dtype: str, positions: np.ndarray, tiny_model: Callable[[str], LoadedModel]
) -> None:
    model = tiny_model(dtype)
    tables = PositionTables(model.decoder.rope, model.prefix.keys)
    for _ in range(2):  # the second time from a table that has grown
        found = tables.of(positions)
        computed = model.decoder.rope.tables(torch.from_numpy(positions), model.prefix.keys)
        assert torch.equal(found.cos, computed.cos)
        assert torch.equal(found.sin, computed.sin)
