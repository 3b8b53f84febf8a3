"""Places that are kept packed are the places that were given."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blockread import BlockPlace
from kvstore.encoding import Layout
from kvstore.format import BlockHeader
from kvstore.placelist import PlaceList
from tests.kvstore.samples import SMALL

LAYOUT = Layout(SMALL)
_FIELDS = [field.name for field in dataclasses.fields(BlockHeader)]


def places(seed: int, count: int) -> list[BlockPlace]:
    """So many, with every field a number of its own, of segments of a few blocks each."""
    rng = random.Random(seed)
    made: list[BlockPlace] = []
    unit, segment = rng.randrange(2**32), rng.randrange(1000)
    for _ in range(count):
        fields = {name: rng.getrandbits(64) for name in _FIELDS}
        fields |= {"first_unit": unit, "unit_count": rng.randint(1, 9), "generation": segment % 3}
        header = BlockHeader(**{**fields, "created_unix_s": rng.random() * 1e10})
        made.append(BlockPlace(header, LAYOUT, segment, rng.getrandbits(48)))
        unit += header.unit_count
        segment += rng.random() < 0.3
    return made


def packed(given_places: list[BlockPlace]) -> PlaceList:
    made = PlaceList()
    for place in given_places:
        made.append(place)
    return made


def same(packed_places: PlaceList, given_places: list[BlockPlace]) -> bool:
    """Whether a list says of blocks and their units what the places say that are given."""
    right = [
        list(packed_places) == given_places,
        len(packed_places) == len(given_places),
        packed_places.last == (given_places[-1] if given_places else None),
    ]
    for index, place in enumerate(given_places):
        for position in range(place.header.unit_count):
            wanted = (index, position, place.header.hash)
            right.append(packed_places.find(place.header.first_unit + position) == wanted)
    if given_places:
        first, last = given_places[0].header, given_places[-1].header
        right += [
            packed_places.find(first.first_unit - 1) is None,
            packed_places.find(last.first_unit + last.unit_count) is None,
            packed_places.stop_unit == last.first_unit + last.unit_count,
        ]
    segments = [
        (number, members[0].header.generation, len(members))
        for number, group in groupby(given_places, lambda place: place.segment_number)
        for members in [list(group)]
    ]
    right.append(packed_places.segments() == segments)
    return all(right)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 200), st.data())
def test_places_come_back_as_they_were(seed: int, count: int, data: st.DataObject) -> None:
    made = places(seed, count)
    whole = packed(made)
    assert same(whole, made)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    part = whole.between(start, stop)
    assert same(part, made[start:stop])
    following = places(seed + 1, 70)
    for place in following:
        part.append(place)
    assert list(part) == made[start:stop] + following
    assert same(whole, made)  # the part is a list of its own
    others = [
        replace(place, header=replace(place.header, hash=index, generation=7), offset=index)
        for index, place in enumerate(made)
        if start <= index < stop
    ]
    assert list(whole.replaced(others)) == made[:start] + others + made[stop:]
    assert same(whole, made)


def test_an_index_outside_is_refused() -> None:
    made = packed(places(1, 3))
    for index in (-1, 3):
        with pytest.raises(IndexError):
            made[index]
