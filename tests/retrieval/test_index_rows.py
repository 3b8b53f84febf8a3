"""Every row of an index is checked before it is used, and once."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from retrieval import checked_rows, index_rows, stored_rows
from retrieval.errors import IndexDamagedError
from retrieval.index import KeyIndexReader
from retrieval.index_file import IndexFile
from retrieval.index_rows import row_check
from retrieval.index_writer import KeyIndexWriter
from tests.retrieval.rows import CHUNK, DIM, LAYERS, create, make_rows


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_every_row_is_checked_however_many_are_gathered_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    for module, name in (
        (index_rows, "_GATHERED_BYTES"),
        (stored_rows, "_READ_BYTES"),
    ):
        monkeypatch.setattr(module, name, rows_at_once * LAYERS * DIM * 4)
    monkeypatch.setattr(checked_rows, "_ROWS_PER_STEP", rows_at_once)
    create(path, make_rows(2 * CHUNK + 3)).close()
    sound = path.read_bytes()
    file = IndexFile.open(path, writable=False)
    layout = file.layout
    file.close()
    for row_index in range(2 * CHUNK + 3):
        chunk_index, place = divmod(row_index, CHUNK)
        layer = row_index % LAYERS
        damaged = bytearray(sound)
        damaged[
            4096 + chunk_index * layout.chunk_bytes + 4 * DIM * (layer * CHUNK + place) + row_index
        ] ^= 0x10
        path.write_bytes(damaged)
        KeyIndexReader.open(path).check(row_index)
        for count in (row_index + 1, 2 * CHUNK + 3):
            with pytest.raises(IndexDamagedError, match=f"row {row_index} fails"):
                KeyIndexReader.open(path).check(count)
            with pytest.raises(IndexDamagedError, match=f"row {row_index} fails"):
                KeyIndexReader.open(path).check_stored(count)
        KeyIndexReader.open(path).check_stored(row_index)


def test_a_row_in_another_rows_place_fails(path: Path) -> None:
    create(path, make_rows(3)).close()
    file = IndexFile.open(path, writable=True)
    [chunk] = file.map_chunks(1)
    chunk.rows[:, [0, 1]] = chunk.rows[:, [1, 0]]
    chunk.checks[[0, 1]] = chunk.checks[[1, 0]]
    file.close()
    with pytest.raises(IndexDamagedError, match="row 0 fails"):
        KeyIndexReader.open(path).check(3)


def test_rows_that_were_never_written_do_not_pass(path: Path) -> None:
    """A power loss may keep the count and lose whole pages: rows and checksums are zeros then."""
    create(path, make_rows(1)).close()
    file = IndexFile.open(path, writable=True)
    file.count = CHUNK
    file.close()
    with pytest.raises(IndexDamagedError, match="row 1 fails"):
        KeyIndexReader.open(path).check(CHUNK)


def test_no_checksum_is_the_one_of_a_page_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda data, seed: 0)
    assert row_check(0, np.zeros((1, 1), np.float32)) != 0


def test_a_row_is_checked_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    def noted(row_index: int, row: NDArray[np.float32]) -> int:
        checked.append(row_index)
        return row_check(row_index, row)

    create(path, make_rows(2 * CHUNK)).close()
    monkeypatch.setattr(index_rows, "row_check", noted)
    reader = KeyIndexReader.open(path)
    query = np.zeros(DIM, np.float32)
    for count in (3, 2, CHUNK + 1, 2 * CHUNK, 2 * CHUNK):
        reader.check(count)
        reader.scores(1, query, count)
    assert checked == list(range(2 * CHUNK))


def test_checked_rows_are_read_while_another_thread_checks_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(path, make_rows(2 * CHUNK)).close()
    reader = KeyIndexReader.open(path)
    reader.check(CHUNK)
    checking, may_go_on = threading.Event(), threading.Event()

    def held(row_index: int, row: NDArray[np.float32]) -> int:
        checking.set()
        may_go_on.wait()
        return row_check(row_index, row)

    monkeypatch.setattr(index_rows, "row_check", held)
    query = np.ones(DIM, np.float32)
    with ThreadPoolExecutor(2) as threads:
        try:
            check = threads.submit(reader.check, 2 * CHUNK)
            checking.wait()
            scores = threads.submit(reader.scores, 0, query, CHUNK)
            assert len(scores.result(timeout=20)) == CHUNK  # for a test that fails to end
            assert not check.done()
        finally:
            may_go_on.set()
        check.result()


def test_rows_are_checked_in_steps_between_which_others_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_rows, "_ROWS_PER_STEP", 2)
    create(path, make_rows(2 * CHUNK)).close()
    reader = KeyIndexReader.open(path)
    query = np.ones(DIM, np.float32)
    read_counts: list[int] = []

    def noted(row_index: int, row: NDArray[np.float32]) -> int:
        steps_done = row_index // 2
        read_counts.append(len(reader.scores(0, query, 2 * steps_done)))
        return row_check(row_index, row)

    monkeypatch.setattr(index_rows, "row_check", noted)
    reader.check(2 * CHUNK)
    assert read_counts == [0, 0, 2, 2, 4, 4, 6, 6]


def test_rows_that_the_disk_does_not_give_out_are_damage_to_whoever_reads_them_by_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(path, make_rows(2 * CHUNK)).close()
    layout_file = IndexFile.open(path, writable=False)
    bad_offset = 4096 + layout_file.layout.chunk_bytes
    layout_file.close()
    pread = os.pread

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        if offset <= bad_offset < offset + length:
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, length, offset)

    def mapped(file: IndexFile, chunk_count: int) -> None:
        raise AssertionError("a mapping would be a SIGBUS")

    monkeypatch.setattr(os, "pread", failing)
    monkeypatch.setattr(IndexFile, "map_chunks", mapped)
    reader = KeyIndexReader.open(path)
    reader.check_stored(CHUNK)
    with pytest.raises(IndexDamagedError, match=f"rows from {CHUNK} on cannot be read"):
        reader.check_stored(CHUNK + 1)
    with pytest.raises(IndexDamagedError, match="cannot be read"):
        KeyIndexWriter.open(path, layer_count=LAYERS, dim=DIM, epoch=2)


def test_rows_beyond_the_end_of_the_file_are_damage(path: Path) -> None:
    create(path, make_rows(1)).close()
    file = IndexFile.open(path, writable=False)
    with pytest.raises(IndexDamagedError, match="ends at"):
        file.read_rows(CHUNK, 1)
    with pytest.raises(ValueError, match="more than one chunk"):
        file.read_rows(CHUNK - 1, 2)
    file.close()
