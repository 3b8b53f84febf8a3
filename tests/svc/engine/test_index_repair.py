"""Key indexes that were lost, cut or torn: found by a look, and whole again from the store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvstore.control
from kvstore.errors import SliceCorruptError, WriterFencedError
from kvstore.glance import last_epoch
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from retrieval.errors import RetrievalError
from retrieval.index import KeyIndexReader
from retrieval.index_file import IndexFile
from retrieval.index_writer import KeyIndexWriter
from svc.engine import ingest_session
from svc.engine.index_repair import header_fault, repair_index, row_fault
from svc.engine.ingest_session import FrameUnit, StoreOptions, StreamIngest
from svc.engine.key_rows import key_index_path
from svc.engine.model import LoadedModel
from svc.engine.store_memory import StoreMemory
from svc.engine.window import WindowConfig

LoadTiny = Callable[[str], LoadedModel]
LIMITS = BlockLimits(block_tokens=36, block_span_s=4.0, min_free_bytes=0)
SESSION = "street"


@pytest.fixture
def model(tiny_model: LoadTiny) -> LoadedModel:
    return tiny_model("float32")


def open_stream(root: Path, model: LoadedModel) -> StreamIngest:
    window = WindowConfig(window_tokens=64, window_positions=64)
    options = StoreOptions(root=root, limits=LIMITS)
    return StreamIngest.open(model, window, SESSION, options)


def push(stream: StreamIngest, model: LoadedModel, count: int) -> None:
    start = stream.status.visible_unit_count
    for i in range(start, start + count):
        frame = np.random.default_rng(i).integers(0, 256, (31, 42, 3), dtype=np.uint8)
        unit = FrameUnit(
            pixels=model.adapter.preprocess([frame]),
            first_pts_s=float(i),
            last_pts_s=float(i),
            gap_before=False,
            thumbnail_jpeg=b"",
            resume=b"{}",
        )
        stream.encode([unit])


def write_session(root: Path, model: LoadedModel, count: int = 9) -> None:
    stream = open_stream(root, model)
    push(stream, model, count)
    stream.flush()
    stream.close()


def scores(root: Path, model: LoadedModel) -> NDArray[np.float32]:
    """Scores of all units in all layers, as a question would get them."""
    reader = SessionReader.open(root, SESSION)
    try:
        index = KeyIndexReader.open(key_index_path(root, SESSION))
        try:
            memory = StoreMemory(model, reader, index, reader.snapshot())
            query = np.random.default_rng(0).standard_normal(index.dim).astype(np.float32)
            found = [memory.scores(layer, query) for layer in range(model.layer_count)]
        finally:
            index.close()
    finally:
        reader.close()
    return np.stack(found)


def index_fault(root: Path, session_id: str) -> str | None:
    """Headers first, then rows, as a start does."""
    return header_fault(root, session_id) or row_fault(root, session_id)


def delete(path: Path) -> None:
    path.unlink()


def cut_the_file(path: Path) -> None:
    os.truncate(path, 3000)


def lose_rows(path: Path) -> None:
    file = IndexFile.open(path, writable=True)
    file.count = 5
    file.close()


def change_the_epoch(path: Path) -> None:
    file = IndexFile.open(path, writable=True)
    file.epoch += 1
    file.close()


def put_another_shape(path: Path) -> None:
    index = KeyIndexReader.open(path)
    epoch, count = index.epoch, index.count
    index.close()
    other = KeyIndexWriter.create(path, layer_count=1, dim=4, epoch=epoch)
    for _ in range(count):
        other.append(np.zeros((1, 4), np.float32))
    other.close()


def flip_a_bit_of_the_first_row(path: Path) -> None:
    flip_a_bit(path, row=0)


def flip_a_bit_of_the_last_row(path: Path) -> None:
    flip_a_bit(path, row=-1)


def flip_a_bit(path: Path, row: int) -> None:
    file = IndexFile.open(path, writable=True)
    [chunk] = file.map_chunks(1)
    chunk.rows.view(np.uint32)[-1, : file.count][row, 0] ^= 1 << 20
    file.close()


@pytest.mark.parametrize(
    "harm",
    [
        delete,
        cut_the_file,
        lose_rows,
        change_the_epoch,
        put_another_shape,
        flip_a_bit_of_the_first_row,
        flip_a_bit_of_the_last_row,
    ],
)
def test_a_harmed_index_is_found_and_made_whole(
    tmp_path: Path, model: LoadedModel, harm: Callable[[Path], None]
) -> None:
    write_session(tmp_path, model)
    before = scores(tmp_path, model)
    assert before.shape == (model.layer_count, 9)
    assert index_fault(tmp_path, SESSION) is None
    harm(key_index_path(tmp_path, SESSION))
    with pytest.raises((RetrievalError, ValueError)):
        scores(tmp_path, model)
    assert index_fault(tmp_path, SESSION) is not None
    assert repair_index(tmp_path, SESSION, limits=LIMITS) == 9
    assert index_fault(tmp_path, SESSION) is None
    np.testing.assert_allclose(scores(tmp_path, model), before, rtol=1e-5, atol=1e-5)


def test_a_power_loss_under_a_writer_is_told_from_the_control_page(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_session(tmp_path, model)
    before = scores(tmp_path, model)
    stream = open_stream(tmp_path, model)
    folder = tmp_path / "sessions" / SESSION
    under_the_writer = (folder / "CTL").read_bytes()
    stream.close()
    # The machine is started anew: the page says that a writer was at work, the count reached the
    # disk, and a row did not.
    (folder / "CTL").write_bytes(under_the_writer)
    index = bytearray(key_index_path(tmp_path, SESSION).read_bytes())
    index[4096 : 4096 + 64] = bytes(64)
    key_index_path(tmp_path, SESSION).write_bytes(index)
    monkeypatch.setattr(kvstore.control, "boot_hash", lambda: 12345)
    assert index_fault(tmp_path, SESSION) is not None
    assert repair_index(tmp_path, SESSION, limits=LIMITS) == 9
    assert index_fault(tmp_path, SESSION) is None
    np.testing.assert_allclose(scores(tmp_path, model), before, rtol=1e-5, atol=1e-5)


def test_a_session_that_was_closed_needs_no_repair_after_a_start_of_the_machine(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_session(tmp_path, model)
    monkeypatch.setattr(kvstore.control, "boot_hash", lambda: 12345)
    assert index_fault(tmp_path, SESSION) is None
    assert scores(tmp_path, model).shape == (model.layer_count, 9)


def test_a_writer_that_comes_while_the_rows_are_looked_at_is_no_fault(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_session(tmp_path, model)
    check = KeyIndexReader.check_stored

    def overtaken(index: KeyIndexReader, count: int) -> None:
        open_stream(tmp_path, model).close()
        check(index, count)

    with monkeypatch.context() as patch:
        patch.setattr(KeyIndexReader, "check_stored", overtaken)
        assert index_fault(tmp_path, SESSION) is None
    assert index_fault(tmp_path, SESSION) is None


def test_an_index_that_the_disk_does_not_give_out_is_made_anew(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_session(tmp_path, model)
    before = scores(tmp_path, model)
    bad = key_index_path(tmp_path, SESSION).stat().st_ino
    pread = os.pread

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        if offset >= 4096 and os.fstat(descriptor).st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    assert header_fault(tmp_path, SESSION) is None
    assert "cannot be read" in str(row_fault(tmp_path, SESSION))
    assert repair_index(tmp_path, SESSION, limits=LIMITS) == 9
    assert index_fault(tmp_path, SESSION) is None
    np.testing.assert_allclose(scores(tmp_path, model), before, rtol=1e-5, atol=1e-5)


def test_a_session_without_units_needs_no_index(tmp_path: Path, model: LoadedModel) -> None:
    (tmp_path / "sessions" / SESSION).mkdir(parents=True)
    assert index_fault(tmp_path, SESSION) is None
    open_stream(tmp_path, model).close()
    key_index_path(tmp_path, SESSION).unlink()
    assert index_fault(tmp_path, SESSION) is None


def test_what_a_flush_makes_durable_is_in_the_index_on_the_disk(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_stream(tmp_path, model)
    push(stream, model, 3)
    synced: list[int] = []
    sync = IndexFile.sync

    def watched(file: IndexFile) -> None:
        sync(file)
        synced.append(file.count)

    monkeypatch.setattr(IndexFile, "sync", watched)
    stream.flush()
    assert synced == [3]
    stream.close()


def test_an_opening_that_fails_leaves_no_descriptor(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_session(tmp_path, model)

    def damaged(*args: Any) -> None:
        raise SliceCorruptError(SESSION, 1, 6, 0)

    def descriptor_count() -> int:
        return len(os.listdir("/proc/self/fd"))

    with monkeypatch.context() as patch:
        patch.setattr(ingest_session, "_window_units", damaged)
        before = descriptor_count()
        for _ in range(5):
            with pytest.raises(SliceCorruptError) as caught:
                open_stream(tmp_path, model)
            del caught
        assert descriptor_count() == before
    open_stream(tmp_path, model).close()


def test_a_repair_begins_no_epoch_below_the_leases_and_changes_nothing_once_it_is_lost(
    tmp_path: Path, model: LoadedModel
) -> None:
    write_session(tmp_path, model)
    whole = scores(tmp_path, model)
    key_index_path(tmp_path, SESSION).unlink()
    with pytest.raises(WriterFencedError):
        repair_index(tmp_path, SESSION, limits=LIMITS, may_commit=lambda: False)
    assert header_fault(tmp_path, SESSION) is not None
    repair_index(tmp_path, SESSION, limits=LIMITS, min_epoch=77)
    assert last_epoch(tmp_path, SESSION) == 77
    np.testing.assert_array_equal(scores(tmp_path, model), whole)
