"""Rows that are made anew while units are thinned are those from before, all of one moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from kvstore.errors import UnitsThinnedError
from kvstore.geometry import Geometry
from svc.engine import key_rows
from svc.engine.unit_rows import UnitRows
from svc.engine.window_cache import UnitKV

SHAPE = Geometry(layer_count=1, kv_head_count=1, head_dim=2, element="float32")
BEFORE = np.full((1, 2), 7.0, np.float32)


def snapshot_of(coarsened: list[bool]) -> Any:
    return SimpleNamespace(
        coarsened=coarsened, thinned=lambda units, _: snapshot_of([u in units for u in (0, 1)])
    )


class Thinned:
    """A reader of two units of one token, the second of which is thinned meanwhile."""

    def mean_keys(self, _: Any, units: list[int]) -> dict[int, Any]:
        return dict.fromkeys(units, BEFORE)

    def cells(self, snapshot: Any, unit: int) -> Any:
        if unit == 1 and not snapshot.coarsened[1]:
            raise UnitsThinnedError("s", (1,), (1,))
        return np.zeros((1, 2), np.uint16)


def test_a_unit_that_is_thinned_meanwhile_has_the_row_from_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kv = UnitKV(keys=torch.ones(1, 1, 1, 2), values=torch.ones(1, 1, 1, 2))
    monkeypatch.setattr(key_rows, "read_units", lambda *_: [kv, kv])
    rows = key_rows._rows_as_stored(
        cast(Any, Thinned()),
        snapshot_of([False, False]),
        UnitRows(SHAPE, all_places=False),
        range(2),
    )
    np.testing.assert_array_equal(rows, [np.ones((1, 2)), BEFORE])
