"""What a reduced unit is found by: all its places, with what was last kept there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.geometry import Geometry
from svc.engine.unit_rows import UnitRows

PLACES = 6
SHAPE = Geometry(layer_count=2, kv_head_count=2, head_dim=3, element="float32")
Array = np.ndarray[Any, Any]


def cells_of(places: list[int]) -> Array:
    return np.array([divmod(place, 3) for place in places], np.uint16).reshape(-1, 2)


def keys_of(places: list[int], seed: int) -> Array:
    shape = (SHAPE.layer_count, len(places), SHAPE.kv_head_count, SHAPE.head_dim)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


KEPT = st.lists(st.sets(st.integers(0, PLACES - 1), min_size=1).map(sorted), max_size=8)


@given(kept=KEPT)
def test_a_row_is_the_mean_over_all_places_of_the_keys_last_kept_there(
    kept: list[list[int]],
) -> None:
    rows = UnitRows(SHAPE, all_places=True)
    latest: dict[int, Array] = {}
    for unit, places in enumerate([list(range(PLACES)), *kept]):
        keys = keys_of(places, unit)
        latest |= {place: keys[:, token] for token, place in enumerate(places)}
        by_hand = np.stack([latest[place] for place in sorted(latest)], axis=1).mean(axis=1)
        row = rows.of(cells_of(places), keys)
        np.testing.assert_allclose(row, by_hand.reshape(SHAPE.layer_count, -1), rtol=1e-5)


@given(kept=KEPT)
def test_rows_go_on_from_the_last_whole_unit_as_if_from_the_start(
    kept: list[list[int]],
) -> None:
    stream = [list(range(PLACES)), [0], list(range(PLACES)), *kept]
    whole, later = (UnitRows(SHAPE, all_places=True) for _ in range(2))
    for unit, places in enumerate(stream):
        expected = whole.of(cells_of(places), keys_of(places, unit))
        if unit >= 2:  # the last whole one
            row = later.of(cells_of(places), keys_of(places, unit))
            assert row.tobytes() == expected.tobytes()


@pytest.mark.parametrize("all_places", [False, True])
def test_a_whole_unit_is_found_by_the_mean_of_its_keys(all_places: bool) -> None:
    rows = UnitRows(SHAPE, all_places=all_places)
    places = list(range(PLACES))
    rows.of(cells_of(places), keys_of(places, 1))
    keys = keys_of(places, 2)
    row = rows.of(cells_of(places), keys)
    np.testing.assert_allclose(row, keys.mean(axis=1).reshape(2, -1), rtol=1e-6)


def test_without_whole_units_now_and_then_a_row_is_of_what_was_kept() -> None:
    rows = UnitRows(SHAPE, all_places=False)
    rows.of(cells_of([0, 1, 2, 3]), keys_of([0, 1, 2, 3], 1))
    keys = keys_of([2], 2)
    np.testing.assert_array_equal(rows.of(cells_of([2]), keys), keys[:, 0].reshape(2, -1))
