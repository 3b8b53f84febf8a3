"""Every row of an index is checked before it is used, and once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from retrieval import index_rows
from retrieval.errors import IndexDamagedError
from retrieval.index import KeyIndexReader
from retrieval.index_file import IndexFile
from retrieval.index_rows import row_check
from tests.retrieval.test_index import CHUNK, DIM, LAYERS, create, make_rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.rows"


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_every_row_is_checked_however_many_are_gathered_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(index_rows, "_GATHERED_BYTES", rows_at_once * LAYERS * DIM * 4)
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
