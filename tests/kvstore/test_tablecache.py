"""The cache of unit tables: never above its limit, by its own count and by what memory says."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.blockread import Block, BlockPlace
from kvstore.encoding import Layout
from kvstore.format import PAGE_BYTES, BlockHeader
from kvstore.geometry import Geometry
from kvstore.table import ROW, UnitTable, table_bytes
from kvstore.tablecache import Key, TableCache, held_bytes

SHAPE = Geometry(layer_count=5, kv_head_count=2, head_dim=16, element="float16")
LAYOUT = Layout(SHAPE)
LIMIT_BYTES = 20_000
KEYS = st.tuples(st.integers(0, 2), st.integers(0, 5))
STEPS = st.lists(
    st.tuples(st.sampled_from(["get", "put", "put", "forget"]), KEYS, st.integers(1, 40)),
    max_size=60,
)


def block(unit_count: int, unit_tokens: int = 16) -> Block:
    """A block as it is read, of numbers as large as they are there."""
    size = table_bytes(unit_count, unit_count * unit_tokens, SHAPE.layer_count)
    data = bytearray(size)
    rows = np.frombuffer(data, ROW, count=unit_count)
    rows["token_count"], rows["thumbnail_bytes"] = unit_tokens, 5000
    header = BlockHeader(
        session_hash=2**63 + 1,
        layout_fingerprint=LAYOUT.fingerprint,
        sequence=100_000,
        epoch=3000,
        durable_block_count=100_000,
        previous_hash=2**63 + 2,
        first_unit=1_000_000,
        unit_count=unit_count,
        token_count=unit_count * unit_tokens,
        table_bytes=size,
        table_hash=2**63 + 3,
        thumbnail_bytes=5000 * unit_count,
        resume_bytes=1000,
        resume_hash=2**63 + 4,
        created_unix_s=1.5e9,
        hash=2**63 + 5,
    )
    # As unpacked from a page: no number is shared with another header.
    header = BlockHeader.unpack(header.pack(), Path("segment")) or header
    table = UnitTable.parse(bytes(data), unit_count=unit_count, layer_count=SHAPE.layer_count)
    return Block(BlockPlace(header, LAYOUT, 5000, PAGE_BYTES), table)


@cache
def blocks() -> list[Block]:
    return [block(count) for count in range(41)]


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_it_holds_what_was_used_last_and_fits(steps: list[tuple[str, Key, int]]) -> None:
    tables = TableCache(LIMIT_BYTES)
    model: OrderedDict[Key, Block] = OrderedDict()
    for step, key, size in steps:
        if step == "get":
            assert tables.get(key) is model.get(key)
            if key in model:
                model.move_to_end(key)
        elif step == "put":
            tables.put(key, blocks()[size])
            if key not in model and held_bytes(blocks()[size]) <= LIMIT_BYTES:
                model[key] = blocks()[size]
            while sum(map(held_bytes, model.values())) > LIMIT_BYTES:
                model.popitem(last=False)
        else:
            tables.forget(key[0])
            for gone in [each for each in model if each[0] == key[0]]:
                del model[gone]
        assert tables.held_bytes == sum(map(held_bytes, model.values())) <= LIMIT_BYTES
        assert len(tables) == len(model)


def test_readers_do_not_share_numbers() -> None:
    tables = TableCache()
    assert len({tables.number() for _ in range(50)}) == 50


def test_what_a_block_takes_is_not_counted_short() -> None:
    for unit_count, unit_tokens in ((1, 1), (1, 196), (8, 196), (16, 16), (256, 16)):
        tables = TableCache(1 << 30)
        gc.collect()
        tracemalloc.start()
        for number in range(200):
            tables.put((0, 2**62 + number), block(unit_count, unit_tokens))
        gc.collect()
        taken_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(tables) == 200
        assert 0.6 * tables.held_bytes < taken_bytes <= tables.held_bytes


def test_threads_leave_the_count_right() -> None:
    tables = TableCache(LIMIT_BYTES)
    wrong: list[int] = []

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number, key, size in rng.integers(0, [3, 40, 41], (3000, 3)).tolist():
            if tables.get((number, key)) is None:
                tables.put((number, key), blocks()[size])
            if key == 0:
                tables.forget(number)
            if tables.held_bytes > LIMIT_BYTES + held_bytes(blocks()[40]):
                wrong.append(tables.held_bytes)

    blocks()
    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert tables.held_bytes == sum(map(held_bytes, tables._blocks.values())) <= LIMIT_BYTES
