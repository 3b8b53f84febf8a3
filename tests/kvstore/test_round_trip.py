"""What was appended is what is read, whatever the sizes and wherever it lies."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.geometry import Geometry, Tier
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from tests.kvstore.samples import (
    FAST_FOLDER,
    LIMITS,
    SESSION,
    Sample,
    append,
    open_writer,
    read_units,
    resume_blob,
    sample,
    unit_is,
)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.sampled_from([("flush", 0), ("reopen", 0)]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(
    steps=steps,
    element=st.sampled_from(["float64", "float32", "float16", "bfloat16"]),
    layer_count=st.integers(1, 4),
    block_tokens=st.integers(1, 90),
    segment_bytes=st.integers(4096, 200_000),
)
def test_every_unit_reads_back_after_any_sequence_of_appends_flushes_and_reopens(
    steps: list[tuple[str, int]],
    element: str,
    layer_count: int,
    block_tokens: int,
    segment_bytes: int,
) -> None:
    geometry = Geometry(layer_count=layer_count, kv_head_count=1, head_dim=6, element=element)
    limits = BlockLimits(
        block_tokens=block_tokens,
        segment_bytes=segment_bytes,
        preallocate_bytes=8192,
        min_free_bytes=0,
    )
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        root = Path(folder)
        expected: list[Sample] = []
        writer = open_writer(root, geometry=geometry, limits=limits)
        reader = SessionReader.open(root, SESSION)
        for step, token_count in steps:
            if step == "append":
                made = sample(len(expected), geometry=geometry, token_count=token_count)
                writer.append(*made, resume=resume_blob(len(expected)))
                writer.publish()
                expected.append(made)
            elif step == "flush":
                writer.flush()
            else:
                writer.close()
                writer = open_writer(root, geometry=geometry, limits=limits)
                del expected[writer.durable_unit_count :]
                if expected:
                    assert writer.recovery.resume == resume_blob(len(expected) - 1)
            snapshot = reader.snapshot()
            assert snapshot.unit_count == len(expected)
            assert snapshot.token_counts.tolist() == [unit.token_count for unit, _, _ in expected]
        order = np.random.default_rng(len(steps)).permutation(len(expected))
        for layer in range(layer_count):
            keys, values, _ = read_units(reader, snapshot, order, layer)
            assert keys.tobytes() == b"".join(expected[i][1][layer].tobytes() for i in order)
            assert values.tobytes() == b"".join(expected[i][2][layer].tobytes() for i in order)
        reader.close()
        writer.close()


def test_units_are_read_from_memory_while_they_are_there_and_from_disk_afterwards(
    root: Path,
) -> None:
    writer = open_writer(root)
    reader = SessionReader.open(root, SESSION)
    append(writer, 60)
    snapshot = reader.snapshot()
    tiers = read_units(reader, snapshot, range(60), 1)[2]
    assert tiers[0] is Tier.DISK
    assert tiers[-1] is Tier.HOT
    assert tiers == sorted(tiers, key=lambda tier: tier is Tier.HOT)
    assert all(unit_is(reader, snapshot, index) for index in range(60))
    writer.close()
    fresh = SessionReader.open(root, SESSION)
    durable = fresh.snapshot()
    assert durable.unit_count == writer.durable_unit_count
    assert set(read_units(fresh, durable, range(durable.unit_count), 0)[2]) == {Tier.DISK}


def test_a_block_closes_at_its_token_limit_and_at_its_span_but_never_splits_a_unit(
    root: Path,
) -> None:
    limits = BlockLimits(block_tokens=10, block_span_s=3.0, min_free_bytes=0)
    writer = open_writer(root, limits=limits)
    durable = []
    for index, token_count in enumerate([4, 6, 1, 1, 1, 30, 2]):
        writer.append(*sample(index, token_count=token_count), resume=b"")
        durable.append(writer.durable_unit_count)
    # 4 + 6 fill a block; units 2 to 4 last 2.5 s, unit 5 is larger than a block on its own.
    assert durable == [0, 0, 2, 2, 2, 5, 6]
    writer.flush()
    assert writer.recovery.durable_block_count == 0
    writer.close()
    assert open_writer(root, limits=limits).recovery.durable_block_count == 4


def test_a_session_of_a_small_model_takes_little_disk(root: Path) -> None:
    writer = open_writer(root, limits=BlockLimits(min_free_bytes=0))
    append(writer, 5)
    writer.flush()
    segment = root / "sessions" / SESSION / "seg-000000.kvs"
    assert segment.stat().st_blocks * 512 <= 5 << 20
    writer.close()
    assert segment.stat().st_size <= 256 << 10


@pytest.mark.parametrize("element", ["bfloat16", "float16"])
def test_sixteen_bit_elements_keep_their_bits(root: Path, element: str) -> None:
    geometry = Geometry(layer_count=1, kv_head_count=1, head_dim=4, element=element)
    writer = open_writer(root, geometry=geometry, limits=LIMITS)
    bits = np.array([0x7FC1, 0x8000, 0x0001, 0xFF80], np.uint16).view(geometry.storage_dtype)
    unit = sample(0, geometry=geometry, token_count=1)[0]
    writer.append(unit, bits.reshape(1, 1, 1, 4), bits.reshape(1, 1, 1, 4), resume=b"")
    writer.publish()
    writer.flush()
    writer.close()
    reader = SessionReader.open(root, SESSION)
    keys, values, _ = read_units(reader, reader.snapshot(), [0], 0)
    assert keys.tobytes() == values.tobytes() == bits.tobytes()
