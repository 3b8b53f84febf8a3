"""The key index of a session that is written counts in the RAM tier's budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kvstore.arena import Arena
from kvstore.errors import StoreFullError
from retrieval.index_writer import KeyIndexWriter
from svc.engine.index_memory import IndexMemory

KIB = 1024
SLACK_BYTES = 24 * KIB  # a slot, a page, and the margin
ROW = np.ones((2, 64), np.float32)


@contextmanager
def disk(byte_count: int) -> Iterator[None]:
    yield


@contextmanager
def full_disk(byte_count: int) -> Iterator[None]:
    raise StoreFullError(Path("disk"), byte_count, 0, 0)
    yield


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    arena = Arena.create(tmp_path, budget_bytes=512 * KIB, slot_bytes=4096, shm_dir=tmp_path)
    yield arena
    arena.close()


def make_index(path: Path, memory: IndexMemory) -> KeyIndexWriter:
    index = KeyIndexWriter.create(path, layer_count=2, dim=64, epoch=1, chunk_row_count=128)
    memory.settle(index.allocated_bytes)
    index.grow_within(memory.room)
    return index


def test_what_the_index_takes_the_arena_gives_and_gets_back(tmp_path: Path, arena: Arena) -> None:
    whole = arena.file_bytes
    path = tmp_path / "index.rows"
    memory = IndexMemory(arena, path, disk)
    index = make_index(path, memory)
    for _ in range(300):
        index.append(ROW)
        assert arena.file_bytes + path.stat().st_size <= arena.budget_bytes
    assert arena.file_bytes <= whole - path.stat().st_size + SLACK_BYTES
    index.close()
    memory.close()
    assert arena.file_bytes == whole
    again = IndexMemory(arena, path, disk)
    assert arena.file_bytes <= whole - path.stat().st_size + SLACK_BYTES
    again.close()


def test_an_index_that_the_budget_has_no_room_for_does_not_grow(
    tmp_path: Path, arena: Arena
) -> None:
    path = tmp_path / "index.rows"
    memory = IndexMemory(arena, path, disk)
    index = make_index(path, memory)
    append = partial(index.append, ROW)
    while arena.file_bytes > 160 * KIB:
        append()
    with pytest.raises(StoreFullError):
        list(iter(append, "never"))
    assert path.stat().st_size + arena.file_bytes <= arena.budget_bytes
    assert index.count * ROW.nbytes > 200 * KIB
    index.close()
    memory.close()


def test_what_the_disk_refuses_is_not_claimed(tmp_path: Path, arena: Arena) -> None:
    whole = arena.file_bytes
    memory = IndexMemory(arena, tmp_path / "index.rows", full_disk)
    with pytest.raises(StoreFullError), memory.room(64 * KIB):
        pass
    assert arena.file_bytes == whole
