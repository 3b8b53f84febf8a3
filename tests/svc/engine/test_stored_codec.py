"""Decoding with torch gives what numpy's decoder gives, to the bit, and so do answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import svc.engine.stored_codec as stored_codec
from kvstore.encoding import Encoding, Layout
from kvstore.encoding_codec import decode_extent, encode_extent
from kvstore.errors import SliceCorruptError
from kvstore.geometry import Geometry, Tier
from kvstore.guarded import GuardedReader
from kvstore.readpool import Reading, ReadPool
from svc.engine.model import LoadedModel
from svc.engine.store_memory import StoreMemory
from svc.engine.stored_codec import decode_units, decodes_on
from svc.engine.stored_kv import to_stored
from tests.kvstore.damaging import flip_byte_of
from tests.svc.engine import streams
from tests.svc.engine.test_answer_store import (
    SESSION,
    answer_with_logits,
    assert_same_to_the_bit,
    request,
    stored,
)

QUANTISED: list[Encoding] = ["int8", "int4"]
ELEMENTS = ["bfloat16", "float16", "float32", "float64"]
LARGEST = {"bfloat16": 1e37, "float16": 3e4, "float32": 1e37, "float64": 1e300}
LoadTiny = Callable[[str], LoadedModel]


def as_elements(numbers: NDArray[np.float64], geometry: Geometry) -> np.ndarray[Any, Any]:
    if geometry.element != "bfloat16":
        return numbers.astype(geometry.storage_dtype)
    return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def encoded(
    layout: Layout, counts: NDArray[np.int64], numbers: Callable[[tuple[int, ...]], Any]
) -> tuple[np.ndarray[Any, Any], bytes, bytes]:
    """Units as they are stored, and their keys and values as numpy decodes them."""
    geometry = layout.geometry
    data, keys, values = [], b"", b""
    for count in counts.tolist():
        shape = (count, geometry.kv_head_count, geometry.head_dim)
        given_keys, given_values = (as_elements(numbers(shape), geometry) for _ in range(2))
        extent = np.empty(layout.extent_bytes(count), np.uint8)
        encode_extent(layout, given_keys, given_values, extent)
        data.append(extent)
        decode_extent(layout, extent, given_keys, given_values)
        keys += given_keys.tobytes()
        values += given_values.tobytes()
    return np.concatenate(data), keys, values


def assert_bits_equal(layout: Layout, seed: int, counts: list[int], scale: float) -> None:
    rng = np.random.default_rng(seed)
    token_counts = np.array(counts, np.int64)

    def numbers(shape: tuple[int, ...]) -> Any:
        drawn = rng.standard_normal(shape) * rng.choice([0.0, 1e-3, 1.0], shape) * scale
        drawn[..., 0] += rng.choice([0.0, 70.0]) * scale
        return np.clip(drawn, -LARGEST[layout.geometry.element], LARGEST[layout.geometry.element])

    data, keys, values = encoded(layout, token_counts, numbers)
    got = decode_units(layout, torch.from_numpy(data), token_counts)
    assert [to_stored(half).tobytes() for half in got] == [keys, values]
    shape = layout.geometry
    expected = (sum(counts), shape.kv_head_count, shape.head_dim)
    assert {tuple(half.shape) for half in got} == {expected}


@settings(max_examples=200, deadline=None)
@given(
    encoding=st.sampled_from(QUANTISED),
    element=st.sampled_from(ELEMENTS),
    heads=st.integers(1, 4),
    dim=st.integers(1, 19),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    scale=st.sampled_from([1e-44, 1e-39, 1e-6, 1.0, 1e3, 1e36]),
    seed=st.integers(0, 2**32),
)
@example("int4", "bfloat16", 2, 17, [1, 5, 5], 1.0, 0)
@example("int4", "float32", 1, 1, [1], 1e-44, 0)
def test_torch_decodes_as_numpy_does(
    encoding: Encoding,
    element: str,
    heads: int,
    dim: int,
    counts: list[int],
    scale: float,
    seed: int,
) -> None:
    layout = Layout(
        Geometry(layer_count=1, kv_head_count=heads, head_dim=dim, element=element), encoding
    )
    assert_bits_equal(layout, seed, counts, scale)


def test_torchs_own_rounding_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(
        Geometry(layer_count=1, kv_head_count=2, head_dim=64, element="bfloat16"), "int8"
    )
    monkeypatch.setattr(stored_codec, "_narrow", lambda layout, numbers: numbers.bfloat16())
    with pytest.raises(AssertionError):
        assert_bits_equal(layout, 0, [49] * 40, 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_gpu_decodes_as_numpy_does(encoding: Encoding, element: str) -> None:
    layout = Layout(
        Geometry(layer_count=1, kv_head_count=4, head_dim=17, element=element), encoding
    )
    rng = np.random.default_rng(0)
    counts = np.array([1, 5, 196, 3], np.int64)
    data, keys, values = encoded(layout, counts, rng.standard_normal)
    got = decode_units(layout, torch.from_numpy(data).to("cuda"), counts)
    assert {half.device.type for half in got} == {"cuda"}
    assert [to_stored(half).tobytes() for half in got] == [keys, values]


def test_only_a_device_of_its_own_decodes() -> None:
    assert [decodes_on(torch.device(name)) for name in ("cpu", "mps", "cuda")] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoding", QUANTISED)
@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "pooled and ahead"])
def test_an_answer_is_the_same_to_the_bit_whoever_decodes(
    dtype: str,
    encoding: Encoding,
    guarded: bool,
    tiny_model: LoadTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(dtype)
    units = streams.ragged_units(model, 14)
    own = request(unit_count=8)
    with stored(tmp_path, model, encoding=encoding) as session:
        session.push(units[:11])
        session.flush()
        session.close()
        session.open()
        session.push(units[11:])
        plain = answer_with_logits(model, own, session.memory())
        calls: list[int] = []

        def counting(*arguments: Any) -> Any:
            calls.append(1)
            return decode_units(*arguments)

        monkeypatch.setattr("svc.engine.store_memory.decodes_on", lambda device: True)
        monkeypatch.setattr("svc.engine.store_memory.decode_units", counting)
        memory = session.memory()
        pool = ReadPool(2, ahead_thread_count=2, least_part_bytes=1)
        reader = GuardedReader(session.reader, pool, Reading())
        if guarded:
            memory = StoreMemory(model, reader, session.index, session.reader.snapshot())
        forced = answer_with_logits(model, own, memory)
        reader.end()
        pool.close()
        assert_same_to_the_bit(plain, forced)
        assert forced[0].tiers == plain[0].tiers
        assert set(forced[0].tiers.values()) == {Tier.HOT, Tier.DISK}
        assert len(calls) >= model.layer_count


def test_damage_is_found_before_it_is_decoded(
    tiny_model: LoadTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("float32")
    with stored(tmp_path, model, encoding="int8") as session:
        session.push(streams.ragged_units(model, 6))
        session.flush()
        session.close()
        session.open()
        snapshot = session.reader.snapshot()
        found = session.reader.stored_slice(snapshot, 2, 1)
        assert found is not None
        flip_byte_of(tmp_path, SESSION, found[0].tobytes())
        monkeypatch.setattr("svc.engine.store_memory.decodes_on", lambda device: True)
        with pytest.raises(SliceCorruptError) as error:
            session.memory().load(1, np.array([1, 2, 3]))
        assert error.value.unit_index == 2
