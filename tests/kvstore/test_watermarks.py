"""Watermarks: what readers of other processes learn about units that are still on their way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvstore.geometry import Geometry
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from kvstore.unit import Unit
from kvstore.writer import SessionWriter

GEOMETRY = Geometry(layer_count=1, kv_head_count=1, head_dim=2, element="float32")


def open_writer(root: Path) -> SessionWriter:
    return SessionWriter.open(
        root,
        "cam",
        geometry=GEOMETRY,
        limits=BlockLimits(min_free_bytes=0),
        shm_dir=root,
        hot_tail_bytes=1 << 20,
    )


def append(writer: SessionWriter, index: int) -> None:
    unit = Unit(
        index=index,
        first_pts_s=float(index),
        last_pts_s=float(index),
        token_count=1,
        position_span=1,
        cells=np.zeros((1, 2), np.uint16),
        drop_fraction=0.0,
        gap_before=False,
        thumbnail_jpeg=b"",
    )
    keys = np.zeros((1, 1, 1, 2), np.float32)
    writer.append(unit, keys, keys, resume=b"")
    writer.publish()


def marks(root: Path) -> tuple[float | None, float | None]:
    reader = SessionReader.open(root, "cam")
    try:
        epoch, received_pts_s, settled_pts_s = reader.watermarks()
        assert epoch == reader.snapshot().epoch
        return received_pts_s, settled_pts_s
    finally:
        reader.close()


@pytest.mark.parametrize("pts_s", [0.0, -3.25, 1e10])
def test_readers_see_what_the_writer_said(tmp_path: Path, pts_s: float) -> None:
    writer = open_writer(tmp_path)
    assert marks(tmp_path) == (None, None)
    writer.set_watermarks(received_pts_s=pts_s, settled_pts_s=None)
    assert marks(tmp_path) == (pts_s, None)
    writer.set_watermarks(received_pts_s=pts_s, settled_pts_s=pts_s)
    assert marks(tmp_path) == (pts_s, pts_s)
    writer.close()


def test_after_a_close_nothing_is_on_its_way(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    append(writer, 0)
    writer.flush()
    writer.set_watermarks(received_pts_s=9.0, settled_pts_s=0.5)
    writer.close()
    assert marks(tmp_path) == (0.5, 0.5)


def test_settled_time_survives_a_clean_close_and_the_next_writer(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    append(writer, 0)
    writer.flush()
    writer.set_watermarks(received_pts_s=0.5, settled_pts_s=0.5)
    writer.close()
    writer = open_writer(tmp_path)
    assert marks(tmp_path) == (0.5, 0.5)
    writer.close()


def test_a_close_that_loses_visible_units_takes_the_settled_time_back(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    append(writer, 0)
    writer.flush()
    append(writer, 1)
    writer.set_watermarks(received_pts_s=1.5, settled_pts_s=1.5)
    writer.close()
    assert marks(tmp_path) == (0.0, 0.0)


def test_a_killed_writer_leaves_only_what_is_durable_settled(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    append(writer, 0)
    writer.flush()
    append(writer, 1)
    writer.set_watermarks(received_pts_s=1.5, settled_pts_s=1.5)
    page = (tmp_path / "sessions" / "cam" / "CTL").read_bytes()
    writer.close()
    (tmp_path / "sessions" / "cam" / "CTL").write_bytes(page)  # as a kill would have left it
    writer = open_writer(tmp_path)
    assert marks(tmp_path) == (0.0, 0.0)
    writer.close()


def test_nothing_is_settled_to_a_reader_that_cannot_reach_the_hot_tail(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    append(writer, 0)
    writer.flush()
    append(writer, 1)
    writer.set_watermarks(received_pts_s=1.5, settled_pts_s=1.5)
    for hot_tail in tmp_path.glob("lookback-*"):
        hot_tail.unlink()
    reader = SessionReader.open(tmp_path, "cam")
    assert reader.snapshot().unit_count == 1
    assert reader.watermarks()[1:] == (1.5, None)
    writer.flush()
    assert reader.watermarks()[1:] == (1.5, 1.5)
    assert reader.snapshot().unit_count == 2
    reader.close()
    writer.close()


def test_nothing_is_settled_before_the_writers_hot_tail_was_tried(tmp_path: Path) -> None:
    open_writer(tmp_path).close()
    reader = SessionReader.open(tmp_path, "cam")
    writer = open_writer(tmp_path)
    append(writer, 0)
    writer.set_watermarks(received_pts_s=0.5, settled_pts_s=0.5)
    assert reader.watermarks()[1:] == (0.5, None)
    for hot_tail in tmp_path.glob("lookback-*"):
        hot_tail.unlink()
    assert reader.snapshot().unit_count == 0
    assert reader.watermarks()[1:] == (0.5, None)
    reader.close()
    writer.close()


def test_what_a_reader_of_a_damaged_control_text_cannot_see_is_not_settled(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    append(writer, 0)
    writer.set_watermarks(received_pts_s=0.5, settled_pts_s=0.5)
    with (tmp_path / "sessions" / "cam" / "CTL").open("r+b") as page:
        page.seek(1024)
        page.write(b"\0" * 3072)  # both texts
    reader = SessionReader.open(tmp_path, "cam")
    assert reader.snapshot().unit_count == 0
    assert reader.watermarks()[1:] == (0.5, None)
    reader.close()
    writer.close()
