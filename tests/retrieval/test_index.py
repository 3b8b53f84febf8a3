from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.errors import EpochChangedError, IndexDamagedError, IndexShortError
from retrieval.index import KeyIndexReader
from retrieval.index_file import IndexFile
from retrieval.index_writer import KeyIndexWriter
from tests.retrieval.rows import CHUNK, DIM, LAYERS, create, make_rows


def reopen(path: Path, epoch: int) -> KeyIndexWriter:
    return KeyIndexWriter.open(path, layer_count=LAYERS, dim=DIM, epoch=epoch)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 3 * CHUNK + 1), asked=st.integers(0, 3 * CHUNK + 1), data=st.data())
def test_scores_and_top_k_equal_a_flat_inner_product_index(
    count: int, asked: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked = min(asked, count)
    k = data.draw(st.integers(1, count + 2))
    path = tmp_path_factory.mktemp("index") / "index.rows"
    rows = make_rows(count, seed=count)
    create(path, rows)
    reader = KeyIndexReader.open(path)
    query = np.random.default_rng(7).standard_normal(DIM, dtype=np.float32)
    for layer in range(LAYERS):
        flat = faiss.IndexFlatIP(DIM)
        flat.add(np.ascontiguousarray(rows[:asked, layer]))
        scores = reader.scores(layer, query, asked)
        np.testing.assert_allclose(scores, rows[:asked, layer] @ query, rtol=1e-5, atol=1e-5)
        indices, values = reader.top_k(layer, query, asked, k)
        assert len(indices) == min(k, asked)
        if asked:
            expected_values, expected = flat.search(query[None], min(k, asked))
            np.testing.assert_array_equal(indices, expected[0])
            np.testing.assert_array_equal(values, expected_values[0])


def test_equal_scores_rank_newer_first(path: Path) -> None:
    create(path, np.ones((6, LAYERS, DIM), np.float32))
    indices, _ = KeyIndexReader.open(path).top_k(0, np.ones(DIM, np.float32), 6, 3)
    assert indices.tolist() == [5, 4, 3]


def test_rows_after_the_snapshot_have_no_influence(path: Path) -> None:
    rows = make_rows(6)
    writer = create(path, rows)
    reader = KeyIndexReader.open(path)
    query = np.random.default_rng(1).standard_normal(DIM, dtype=np.float32)

    def read(layer: int) -> tuple[NDArray[np.generic], ...]:
        return reader.scores(layer, query, 6), *reader.top_k(layer, query, 6, 3)

    before = [read(layer) for layer in range(LAYERS)]
    for row in make_rows(20, seed=2) * 1e6:
        writer.append(row)
    after = [read(layer) for layer in range(LAYERS)]
    for old, new in zip(before, after, strict=True):
        for old_part, new_part in zip(old, new, strict=True):
            np.testing.assert_array_equal(old_part, new_part)


def test_asking_beyond_what_is_published_is_refused(path: Path) -> None:
    create(path, make_rows(2))
    with pytest.raises(IndexShortError) as caught:
        KeyIndexReader.open(path).scores(0, np.zeros(DIM, np.float32), 3)
    assert (caught.value.asked_count, caught.value.row_count) == (3, 2)


def _append_on_demand(path: str, orders: Any, done: Any) -> None:
    writer = reopen(Path(path), epoch=1)
    while (seed := orders.get()) is not None:
        writer.append(make_rows(1, seed=seed)[0])
        done.put(writer.count)


def test_another_process_sees_a_row_once_it_is_published(path: Path) -> None:
    create(path, make_rows(0)).close()
    reader = KeyIndexReader.open(path)
    context = multiprocessing.get_context("spawn")
    orders, done = context.Queue(), context.Queue()
    process = context.Process(target=_append_on_demand, args=(str(path), orders, done))
    process.start()
    try:
        for seed in range(2 * CHUNK + 1):  # over a chunk's end, after the reader mapped the first
            orders.put(seed)
            assert done.get(timeout=60) == seed + 1 == reader.count
            row = make_rows(1, seed=seed)[0]
            query = np.ones(DIM, np.float32)
            assert reader.scores(2, query, seed + 1)[-1] == pytest.approx(row[2].sum(), abs=1e-5)
    finally:
        orders.put(None)
        process.join(timeout=60)
    assert process.exitcode == 0


def test_many_threads_read_one_reader_while_rows_are_appended(path: Path) -> None:
    rows = make_rows(40)
    writer = create(path, rows[:1])
    reader = KeyIndexReader.open(path)
    query = np.random.default_rng(3).standard_normal(DIM, dtype=np.float32)
    faults: list[Exception] = []
    finished = threading.Event()

    def read() -> None:
        try:
            while not finished.is_set():
                count = reader.count
                expected = rows[:count, 1] @ query
                np.testing.assert_allclose(reader.scores(1, query, count), expected, atol=1e-4)
        except Exception as error:  # noqa: BLE001 - handed to the test's own thread
            faults.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for row in rows[1:]:
        writer.append(row)
    finished.set()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_cut_fences_readers_of_the_old_history_off(path: Path) -> None:
    writer = create(path, make_rows(6))
    reader = KeyIndexReader.open(path)
    writer.truncate(4, epoch=2)
    query = np.zeros(DIM, np.float32)
    for read in (
        lambda: reader.scores(0, query, 2),
        lambda: reader.top_k(0, query, 2, 1),
        lambda: reader.count,
    ):
        with pytest.raises(EpochChangedError) as caught:
            read()
        assert (caught.value.opened_epoch, caught.value.epoch) == (1, 2)
    assert KeyIndexReader.open(path).count == 4


def test_an_epoch_that_moves_during_a_read_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create(path, make_rows(6))
    reader = KeyIndexReader.open(path)
    kernel = faiss.fvec_inner_products_ny

    def cut_then_score(*arguments: object) -> None:
        writer.truncate(0, epoch=2)
        kernel(*arguments)

    monkeypatch.setattr(faiss, "fvec_inner_products_ny", cut_then_score)
    with pytest.raises(EpochChangedError):
        reader.scores(0, np.zeros(DIM, np.float32), 3)


def test_rows_survive_reopening_and_go_on(path: Path) -> None:
    rows = make_rows(7)
    create(path, rows[:5]).close()
    writer = reopen(path, epoch=2)
    assert (writer.count, writer.epoch) == (5, 2)
    for row in rows[5:]:
        writer.append(row)
    query = np.ones(DIM, np.float32)
    scores = KeyIndexReader.open(path).scores(0, query, 7)
    np.testing.assert_allclose(scores, rows[:, 0] @ query, atol=1e-5)


@pytest.mark.parametrize("row_index", [0, 3, 5])
def test_a_row_that_fails_its_checksum_ends_the_index(path: Path, row_index: int) -> None:
    create(path, make_rows(7)).close()
    file = IndexFile.open(path, writable=True)
    chunk_index, row_in_chunk = divmod(row_index, CHUNK)
    file.map_chunks(chunk_index + 1)[chunk_index].rows[1, row_in_chunk, 2] += 1
    file.close()
    reader = KeyIndexReader.open(path)
    query = np.zeros(DIM, np.float32)
    reader.scores(0, query, row_index)
    with pytest.raises(IndexDamagedError, match=f"row {row_index} fails"):
        reader.scores(0, query, 7)
    assert reopen(path, epoch=2).count == row_index


def test_a_reader_of_another_epoch_than_its_snapshot_is_refused(path: Path) -> None:
    create(path, make_rows(2), epoch=4)
    reader = KeyIndexReader.open(path)
    reader.require_epoch(4)
    for epoch in (3, 5):
        with pytest.raises(EpochChangedError):
            reader.require_epoch(epoch)


def test_a_cut_row_does_not_come_back_with_an_old_count(path: Path) -> None:
    writer = create(path, make_rows(7))
    writer.truncate(5, epoch=2)
    writer.close()
    file = IndexFile.open(path, writable=True)
    file.count = 7  # as after a power loss that kept an older header page
    file.close()
    assert reopen(path, epoch=3).count == 5


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(b""), "0 bytes"),
        (lambda p: p.write_bytes(b"x" * 9000), "begins with"),
        (lambda p: os.truncate(p, 5000), "rows need"),
        (lambda p: _flip(p, 8), "version"),
        (lambda p: _flip(p, 16), "checksum"),
    ],
)
def test_a_foreign_or_torn_file_is_refused_and_can_be_created_anew(
    path: Path, damage: Any, reason: str
) -> None:
    create(path, make_rows(3)).close()
    damage(path)
    for open_it in (lambda: KeyIndexReader.open(path), lambda: reopen(path, epoch=2)):
        with pytest.raises(IndexDamagedError, match=reason):
            open_it()
    create(path, make_rows(2), epoch=2)
    assert KeyIndexReader.open(path).count == 2


def test_an_index_of_another_model_is_refused(path: Path) -> None:
    create(path, make_rows(3)).close()
    with pytest.raises(IndexDamagedError, match="3 x 10"):
        KeyIndexWriter.open(path, layer_count=LAYERS, dim=DIM + 1, epoch=2)


def test_replacing_a_file_leaves_its_readers_what_they_had(path: Path) -> None:
    rows = make_rows(3)
    create(path, rows)
    reader = KeyIndexReader.open(path)
    create(path, make_rows(3, seed=5), epoch=2)
    query = np.ones(DIM, np.float32)
    np.testing.assert_allclose(reader.scores(0, query, 3), rows[:, 0] @ query, atol=1e-5)


def test_what_is_closed_holds_the_file_no_more_though_its_object_lives(path: Path) -> None:
    writer = KeyIndexWriter.create(path, layer_count=2, dim=4, epoch=1)
    writer.append(np.ones((2, 4), np.float32))
    reader = KeyIndexReader.open(path)
    assert len(reader.scores(0, np.ones(4, np.float32), 1)) == 1
    for opened in (writer, reader):
        opened.close()
        assert (opened.count, opened.epoch) == (1, 1)
    assert str(path) not in Path("/proc/self/maps").read_text()
    held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert str(path) not in held


def test_the_file_is_never_sparse(path: Path) -> None:
    writer = create(path, make_rows(2 * CHUNK + 1))
    status = path.stat()
    assert status.st_blocks * 512 >= status.st_size == writer.allocated_bytes


def test_a_full_disk_is_an_error_and_publishes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(CHUNK + 1)
    writer = create(path, rows[:CHUNK])

    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(OSError, match="no space"):
            writer.append(rows[CHUNK])
    assert writer.count == CHUNK
    writer.append(rows[CHUNK])
    assert KeyIndexReader.open(path).count == CHUNK + 1


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((LAYERS, DIM), np.float64),
        np.zeros((LAYERS, DIM + 1), np.float32),
        np.full((LAYERS, DIM), np.nan, np.float32),
    ],
)
def test_a_row_of_the_wrong_kind_is_refused(path: Path, rows: NDArray[np.float32]) -> None:
    writer = create(path, make_rows(1))
    with pytest.raises(ValueError, match="rows must be"):
        writer.append(rows)
    assert writer.count == 1


def test_growing_leaves_free_what_is_to_be_left(path: Path) -> None:
    rows = make_rows(CHUNK + 1)
    writer = create(path, rows[:CHUNK])
    disk = os.statvfs(path)
    writer.leave_free(disk.f_blocks * disk.f_frsize)
    with pytest.raises(OSError, match="would leave less") as caught:
        writer.append(rows[CHUNK])
    assert caught.value.errno == errno.ENOSPC
    assert writer.count == CHUNK
    writer.leave_free(0)
    writer.append(rows[CHUNK])
    assert writer.count == CHUNK + 1
    writer.close()
