"""Layers that are encoded together: each has the bytes and the checksum that it has alone."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import xxhash

import kvstore.encoding_layers as encoding_layers
from kvstore.encoding import Encoding, Layout
from kvstore.encoding_codec import UnencodableError, encode_extent
from kvstore.encoding_layers import encode_layers
from kvstore.geometry import Geometry

Array = np.ndarray[Any, Any]

LAYERS, TOKENS, HEADS, DIM = 7, 3, 2, 5
LAYER_BYTES = TOKENS * HEADS * DIM * 4


@pytest.fixture(params=[1, 3 * LAYER_BYTES, 100 * LAYER_BYTES], ids=["one", "three", "all"])
def _pass_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many layers of float32 at a time; three do not divide seven."""
    monkeypatch.setattr(encoding_layers, "_PASS_BYTES", request.param)


def unit(element: str = "float32") -> tuple[Array, Array]:
    """Keys and values whose layers differ in scale, so that a range across layers shows."""
    rng = np.random.default_rng(4)
    shape = (LAYERS, TOKENS, HEADS, DIM)
    scale = 10.0 ** np.arange(LAYERS).reshape(-1, 1, 1, 1)
    keys, values = (scale * rng.standard_normal(shape) for _ in range(2))
    if element == "bfloat16":
        bits = [half.astype(np.float32).view(np.uint32) >> 16 for half in (keys, values)]
        return bits[0].astype(np.uint16), bits[1].astype(np.uint16)
    return keys.astype(element), values.astype(element)


def layout_of(encoding: Encoding, element: str = "float32") -> Layout:
    shape = Geometry(layer_count=LAYERS, kv_head_count=HEADS, head_dim=DIM, element=element)
    return Layout(shape, encoding)


@pytest.mark.usefixtures("_pass_bytes")
@pytest.mark.parametrize("element", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_each_layer_has_the_bytes_that_it_has_alone(encoding: Encoding, element: str) -> None:
    layout, (keys, values) = layout_of(encoding, element), unit(element)
    extents = np.full((LAYERS, layout.extent_bytes(TOKENS)), 0xA5, np.uint8)
    checksums = encode_layers(layout, keys, values, extents)
    assert checksums == [xxhash.xxh3_64_intdigest(extent.data) for extent in extents]
    for layer in range(LAYERS):
        if layout.quantised:
            alone = np.full(layout.extent_bytes(TOKENS), 0xA5, np.uint8)
            encode_extent(layout, keys[layer], values[layer], alone)
        else:
            alone = np.frombuffer(keys[layer].tobytes() + values[layer].tobytes(), np.uint8)
        assert extents[layer].tobytes() == alone.tobytes()


@pytest.mark.usefixtures("_pass_bytes")
@pytest.mark.parametrize("half", ["keys", "values"])
@pytest.mark.parametrize("layer", [0, 4, LAYERS - 1])
def test_what_has_no_range_is_told_with_its_layer(layer: int, half: str) -> None:
    layout, (keys, values) = layout_of("int4"), unit()
    {"keys": keys, "values": values}[half][layer, 1, 1, 2] = np.inf
    extents = np.empty((LAYERS, layout.extent_bytes(TOKENS)), np.uint8)
    with pytest.raises(UnencodableError, match=f"its {half} hold NaN") as caught:
        encode_layers(layout, keys, values, extents)
    assert caught.value.layer == layer
