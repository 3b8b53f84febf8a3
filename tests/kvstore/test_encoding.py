"""int8 and int4: how far an element may move, that bytes are a function of elements, and back."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import kvstore.encoding_codec as codec
from kvstore.encoding import ENCODINGS, Encoding, Layout, encoding_named
from kvstore.geometry import Geometry

Array = np.ndarray[Any, Any]

QUANTISED: list[Encoding] = ["int8", "int4"]
ELEMENTS = ["bfloat16", "float16", "float32", "float64"]
LARGEST = {"bfloat16": 1e37, "float16": 30000.0, "float32": 1e37, "float64": 1e300}
PRECISION = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-22, "float64": 2.0**-51}
"""More than half the distance to the next element, relative, and what calculating loses."""
TINY = {"bfloat16": 1e-40, "float16": 6e-8, "float32": 3e-45, "float64": 1e-323}


def layout_of(encoding: Encoding, element: str, heads: int = 2, dim: int = 5) -> Layout:
    return Layout(
        Geometry(layer_count=1, kv_head_count=heads, head_dim=dim, element=element), encoding
    )


def stored(layout: Layout, numbers: Array) -> Array:
    """The nearest elements to some numbers."""
    if layout.geometry.element != "bfloat16":
        return numbers.astype(layout.geometry.storage_dtype)
    bits = numbers.astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) >> 16).astype(np.uint16)


def numbers_of(layout: Layout, elements: Array) -> Array:
    if layout.geometry.element == "bfloat16":
        elements = (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.astype(np.float64)


def encode(layout: Layout, keys: Array, values: Array) -> Array:
    out = np.full(layout.extent_bytes(len(keys)), 0xA5, np.uint8)
    codec.encode_extent(layout, keys, values, out)
    return out


def decode(layout: Layout, data: Array, token_count: int) -> tuple[Array, Array]:
    shape = (token_count, layout.geometry.kv_head_count, layout.geometry.head_dim)
    keys, values = (np.empty(shape, layout.geometry.storage_dtype) for _ in range(2))
    codec.decode_extent(layout, data, keys, values)
    return keys, values


def worst_miss(layout: Layout, elements: Array, decoded: Array, axis: int) -> float:
    """The largest distance of a decoded element in units of what is allowed; at most 1 is right."""
    before, after = numbers_of(layout, elements), numbers_of(layout, decoded)
    element = layout.geometry.element
    with np.errstate(over="ignore"):
        spread = before.max(axis=axis, keepdims=True) - before.min(axis=axis, keepdims=True)
        largest = np.abs(before).max(axis=axis, keepdims=True)
    half_step = spread / layout.level_count / 2
    allowed = half_step * 1.0001 + largest * PRECISION[element] + TINY[element]
    return float((np.abs(after - before) / allowed).max())


def misses(layout: Layout, keys: Array, values: Array) -> float:
    decoded = decode(layout, encode(layout, keys, values), len(keys))
    return max(
        worst_miss(layout, keys, decoded[0], axis=0), worst_miss(layout, values, decoded[1], axis=2)
    )


@st.composite
def units(draw: st.DrawFn) -> tuple[Layout, Array, Array]:
    """Keys and values of any element, among them far ones, equal ones and denormal ones."""
    element = draw(st.sampled_from(ELEMENTS))
    heads, dim = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    layout = layout_of(draw(st.sampled_from(QUANTISED)), element, heads, dim)
    shape = (draw(st.integers(1, 6)), heads, dim)
    largest = LARGEST[element]
    finite = st.floats(-largest, largest)
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 100.0, 100.5, -99.0, 1e-5, 7e-8, 3.0])
    made = arrays.arrays(np.float64, shape, elements=st.one_of(few, finite))
    return layout, stored(layout, draw(made)), stored(layout, draw(made))


@settings(max_examples=150, deadline=None)
@given(unit=units())
def test_no_element_moves_by_more_than_half_a_step(unit: tuple[Layout, Array, Array]) -> None:
    assert misses(*unit) <= 1


def smallest_numbers() -> tuple[Layout, Array, Array]:
    """A range of few denormal numbers, which no step divides well."""
    keys = np.array([8.7e-44, 0.0], np.float32).reshape(2, 1, 1)
    return layout_of("int4", "float32", heads=1, dim=1), keys, keys


@settings(max_examples=150, deadline=None)
@given(unit=units())
@example(unit=smallest_numbers())
def test_what_was_decoded_encodes_to_the_same_bytes(unit: tuple[Layout, Array, Array]) -> None:
    layout, keys, values = unit
    data = encode(layout, keys, values)
    again = encode(layout, *decode(layout, data, len(keys)))
    assert again.tobytes() == data.tobytes()


@settings(max_examples=40, deadline=None)
@given(unit=units())
def test_the_same_elements_give_the_same_bytes_wherever_they_lie_in_memory(
    unit: tuple[Layout, Array, Array],
) -> None:
    layout, keys, values = unit
    data = encode(layout, keys, values)
    size = keys.nbytes
    memory = np.empty(2 * size + 64, np.uint8)
    for shift in (1, 2, 7):
        moved = memory[shift : shift + size].view(keys.dtype).reshape(keys.shape)
        moved[...] = keys
        out = memory[shift + size :][: len(data)] if len(data) + shift <= size + 64 else data.copy()
        codec.encode_extent(layout, moved, values, out)
        assert out.tobytes() == data.tobytes()
    turned = np.ascontiguousarray(keys[::-1])[::-1]
    assert encode(layout, turned, values).tobytes() == data.tobytes()


def heavy(layout: Layout, token_count: int = 40) -> tuple[Array, Array]:
    """Keys with two channels far from zero, as real ones have, and Gaussian values."""
    rng = np.random.default_rng(3)
    shape = (token_count, layout.geometry.kv_head_count, layout.geometry.head_dim)
    keys = rng.standard_normal(shape)
    keys[:, :, 1] += 90
    keys[:, :, 3] -= 40
    return stored(layout, keys), stored(layout, rng.standard_normal(shape))


@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("element", ELEMENTS)
def test_both_ends_of_every_range_come_back_as_they_were(encoding: Encoding, element: str) -> None:
    layout = layout_of(encoding, element)
    keys, values = heavy(layout)
    got_keys, got_values = decode(layout, encode(layout, keys, values), len(keys))
    for axis, before, after in ((0, keys, got_keys), (2, values, got_values)):
        numbers, decoded = numbers_of(layout, before), numbers_of(layout, after)
        assert (numbers.min(axis=axis) == decoded.min(axis=axis)).all()
        assert (numbers.max(axis=axis) == decoded.max(axis=axis)).all()


@pytest.mark.parametrize("encoding", QUANTISED)
def test_a_far_channel_costs_the_other_channels_nothing(encoding: Encoding) -> None:
    layout = layout_of(encoding, "float32")
    keys, values = heavy(layout)
    near = keys.copy()
    near[:, :, [1, 3]] = 0
    with_far = decode(layout, encode(layout, keys, values), len(keys))[0]
    without = decode(layout, encode(layout, near, values), len(keys))[0]
    others = [0, 2, 4]
    assert (with_far[:, :, others] == without[:, :, others]).all()


@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("element", ELEMENTS)
def test_equal_tokens_and_a_single_token_lose_nothing_of_keys(
    encoding: Encoding, element: str
) -> None:
    layout = layout_of(encoding, element)
    keys, values = heavy(layout, token_count=1)
    assert decode(layout, encode(layout, keys, values), 1)[0].tobytes() == keys.tobytes()
    many = np.repeat(keys, 9, axis=0)
    decoded = decode(layout, encode(layout, many, many), 9)[0]
    assert decoded.tobytes() == many.tobytes()


@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("half", [0, 1])
def test_nan_and_infinity_are_refused_and_the_half_is_named(
    encoding: Encoding, element: str, bad: float, half: int
) -> None:
    layout = layout_of(encoding, element)
    halves = [each.copy() for each in heavy(layout)]
    halves[half][7, 1, 2] = stored(layout, np.array([bad]))[0]
    with pytest.raises(codec.UnencodableError, match="keys" if half == 0 else "values"):
        encode(layout, *halves)


def test_numbers_whose_distance_is_no_number_are_refused() -> None:
    layout = layout_of("int8", "float32", heads=1, dim=1)
    far = np.array([-3e38, 3e38], np.float32).reshape(2, 1, 1)
    with pytest.raises(codec.UnencodableError, match="too far apart"):
        encode(layout, far, far)


@pytest.mark.parametrize(
    ("encoding", "bytes_"),
    [("model", 2 * 196 * 1024), ("int8", 205_888), ("int4", 105_536)],
)
def test_a_unit_of_the_7b_model_takes_a_half_and_a_quarter(encoding: Encoding, bytes_: int) -> None:
    layout = layout_of(encoding, "bfloat16", heads=4, dim=128)
    assert layout.extent_bytes(196) == bytes_
    assert layout.extent_bytes(2 * 196, 2) == 2 * bytes_


def test_layouts_are_told_apart_and_unknown_encodings_refused() -> None:
    layouts = [layout_of(encoding, element) for encoding in ENCODINGS for element in ELEMENTS]
    assert len({layout.fingerprint for layout in layouts}) == len(layouts)
    assert set(ENCODINGS) == set(get_args(Encoding))
    with pytest.raises(ValueError, match="'int2'"):
        encoding_named("int2")


def test_these_tests_notice_codes_that_are_cut_off_instead_of_rounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvstore.encoding_codec.np.rint", np.floor)
    layout = layout_of("int8", "float32")
    assert misses(layout, *heavy(layout)) > 1


def test_these_tests_notice_ranges_across_channels_instead_of_tokens() -> None:
    layout = layout_of("int4", "float32")
    keys, values = heavy(layout)
    swapped = decode(layout, encode(layout, values, keys), len(keys))[1]
    assert worst_miss(layout, keys, swapped, axis=0) > 1


def test_these_tests_notice_a_range_that_is_left_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout = layout_of("int8", "float32")
    keys, values = heavy(layout)
    data = encode(layout, keys, values)
    monkeypatch.setattr("kvstore.encoding_codec.np.minimum", lambda numbers, _, out: numbers)
    beyond = decode(layout, data, len(keys))
    assert encode(layout, *beyond).tobytes() != data.tobytes()
