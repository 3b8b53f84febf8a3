"""Which tokens go: the most alike first, slow drift stays, every unit keeps one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.encoding import ENCODINGS, Encoding, Layout
from kvstore.encoding_codec import decode_extent, encode_extent, select_tokens
from kvstore.geometry import Geometry
from kvstore.thinning import LOST_FRACTIONS, compared_layers, directions, lost_tokens
from tests.kvstore.thinned import elements

GRID = np.array([(row, column) for row in range(2) for column in range(4)], np.uint16)


def chosen(keys: Any, *, pinned: Any = ()) -> Any:
    """Run `lost_tokens` over (units, tokens, channels) keys on GRID; (units, tokens) bool."""
    keys = np.asarray(keys, np.float64)
    unit_count, token_count, _ = keys.shape
    may_lose = np.ones(unit_count, np.bool_)
    may_lose[list(pinned)] = False
    lost = lost_tokens(
        directions(keys.reshape(1, unit_count * token_count, -1)),
        np.repeat(np.arange(unit_count), token_count),
        np.tile(GRID[:token_count], (unit_count, 1)),
        may_lose,
        0.5,
    )
    return lost.reshape(unit_count, token_count)


def test_what_is_still_goes_and_what_changes_stays() -> None:
    rng = np.random.default_rng(1)
    keys = np.repeat(rng.standard_normal((1, 8, 16)), 6, axis=0)
    keys += 0.01 * rng.standard_normal(keys.shape)
    changing = [1, 4, 6]
    keys[:, changing] = rng.standard_normal((6, 3, 16))
    lost = chosen(keys)
    assert lost.sum() == 24
    assert not lost[:, changing].any()
    assert not lost[0].any()  # nothing came before


def test_a_slow_drift_is_compared_with_what_was_kept_and_so_is_not_lost() -> None:
    """Neighbours of the drifting cell are more alike than those of the noisy one, always."""
    rng = np.random.default_rng(2)
    count = 24
    angles = np.linspace(0, np.pi, count)
    drifting = np.stack([np.cos(angles), np.sin(angles), np.zeros(count)], axis=1)
    noisy = np.tile([0.0, 0.0, 1.0], (count, 1)) + 0.2 * rng.standard_normal((count, 3))
    keys = np.stack([drifting, noisy], axis=1)
    kept = np.flatnonzero(~chosen(keys)[:, 0])
    turns = np.diff(angles[kept])
    assert np.cos(turns).min() < 0.99  # the neighbours' is 0.9907
    # Between what stays nothing is missing that is far from all of it.
    nearest = np.abs(angles[:, None] - angles[kept]).min(axis=1)
    assert nearest.max() < 0.7


def test_a_unit_that_repeats_wholly_keeps_a_token_and_half_goes() -> None:
    keys = np.ones((6, 8, 4))
    lost = chosen(keys)
    assert lost.sum() == 24
    assert (~lost).sum(axis=1).min() >= 1


def test_one_unit_alone_is_thinned_along_itself() -> None:
    rng = np.random.default_rng(3)
    keys = rng.standard_normal((1, 8, 16))
    keys[0, 3:7] = keys[0, 2]
    assert np.flatnonzero(chosen(keys)).tolist() == [3, 4, 5, 6]


def test_keys_that_are_not_finite_are_like_nothing() -> None:
    keys = np.full((2, 8, 4), np.nan)
    keys[:, 4:] = 1.0
    lost = chosen(keys)
    assert lost[1, 4:].all()
    assert directions(np.full((1, 1, 4), np.inf)).tolist() == [[0, 0, 0, 0]]


@given(
    unit_count=st.integers(1, 6),
    counts=st.data(),
    seed=st.integers(0, 1000),
    levels=st.integers(1, 3),
    fraction=st.sampled_from(LOST_FRACTIONS),
)
@settings(max_examples=150, deadline=None)
def test_the_share_goes_pinned_units_stay_whole_and_every_unit_keeps_one(
    unit_count: int, counts: st.DataObject, seed: int, levels: int, fraction: float
) -> None:
    sizes = counts.draw(st.lists(st.integers(1, 8), min_size=unit_count, max_size=unit_count))
    pinned = counts.draw(st.lists(st.booleans(), min_size=unit_count, max_size=unit_count))
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(unit_count), sizes)
    cells = np.concatenate([GRID[np.sort(rng.permutation(8)[:size])] for size in sizes])
    # Few different keys: many ties.
    keys = rng.integers(-levels, levels + 1, (2, len(units), 3)).astype(np.float32)
    may_lose = ~np.array(pinned)
    lost = lost_tokens(directions(keys), units, cells, may_lose, fraction)
    assert not lost[~may_lose[units]].any()
    assert np.bincount(units[~lost], minlength=unit_count).min() >= 1
    free = int(may_lose[units].sum())
    spare = free - int(may_lose.sum())
    assert lost.sum() == min(int(free * fraction), spare)
    again = lost_tokens(directions(keys), units, cells, may_lose, fraction)
    assert np.array_equal(lost, again)


def test_up_to_four_layers_are_compared_the_first_and_the_last_among_them() -> None:
    assert [compared_layers(count) for count in (1, 2, 4, 28)] == [
        [0],
        [0, 1],
        [0, 1, 2, 3],
        [0, 9, 18, 27],
    ]


@given(
    encoding=st.sampled_from(ENCODINGS),
    element=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    head_dim=st.integers(1, 9),
    token_count=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_tokens_that_stay_are_read_as_they_were(
    encoding: Encoding, element: str, head_dim: int, token_count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    geometry = Geometry(layer_count=1, kv_head_count=2, head_dim=head_dim, element=element)
    layout = Layout(geometry, encoding)
    shape = (token_count, 2, head_dim)
    numbers = [rng.standard_normal(shape) for _ in range(2)]
    halves = [elements(each, geometry) for each in numbers]
    data = np.empty(layout.extent_bytes(token_count), np.uint8)
    if encoding == "model":
        data[:] = np.concatenate([half.reshape(-1).view(np.uint8) for half in halves])
    else:
        encode_extent(layout, *halves, data)
    kept = rng.random(token_count) < 0.5
    kept[rng.integers(token_count)] = True
    part = select_tokens(layout, data, kept)
    assert part.nbytes == layout.extent_bytes(int(kept.sum()))

    def read(extent: Any, count: int) -> list[bytes]:
        out = [np.empty((count, 2, head_dim), geometry.storage_dtype) for _ in range(2)]
        if encoding == "model":
            return [half.tobytes() for half in np.split(extent, 2)]
        decode_extent(layout, extent, *out)
        return [half.tobytes() for half in out]

    whole = [
        np.frombuffer(half, geometry.storage_dtype).reshape(shape)[kept].tobytes()
        for half in read(data, token_count)
    ]
    assert read(part, int(kept.sum())) == whole


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_keys_of_zeros_are_like_nothing(zero: float) -> None:
    assert directions(np.full((2, 3, 4), zero)).tolist() == np.zeros((3, 8)).tolist()
