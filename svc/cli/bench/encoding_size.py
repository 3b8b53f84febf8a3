"""What an hour of stream takes on the disk, by how keys and values are kept, and how many."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstore.diskuse import path_bytes
from kvstore.encoding import Encoding
from kvstore.geometry import Geometry
from kvstore.limits import BlockLimits
from kvstore.paths import INDEX_NAME, segment_numbers, segment_path, session_folder
from kvstore.unit import Unit
from kvstore.writer import SessionWriter
from retrieval.index_writer import KeyIndexWriter
from svc.cli.bench.encoding_error import Material
from svc.report import Row
from svc.video.thumbnails import thumbnail_jpeg

SESSION = "bench"
UNIT_S = 2.0  # 0.5 frames per second, a frame a unit
UNITS_AN_HOUR = 1800
_ENCODINGS: tuple[Encoding, ...] = ("model", "int8", "int4")
_RECOMMENDED = ("int4", 0.71)
"""The built-in model's element type, and what `last_kept` drops of its streams on average, by
`python -m eval.streamworld calibrate`."""
_DROP_FRACTIONS = (0.0, 0.5, _RECOMMENDED[1], 0.9)
_GRID = 14  # patches a side
_PICTURE_PX = 384
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """How a session is written."""

    encoding: Encoding
    kept_count: int
    """Tokens that are kept of every unit, the first ones of the material."""
    unit_count: int
    limits: BlockLimits
    thumbnail: bytes = b""


def write_session(root: Path, shape: Geometry, material: Material, plan: SessionPlan) -> None:
    """Writes a session of equal units, durably.

    Args:
        root: folder of the store; made.
        shape: of the session; `material` holds one layer of one unit of it.
        material: of at least `kept_count` tokens.
        plan: what to make of them.
    """
    size = (shape.layer_count, plan.kept_count, shape.kv_head_count, shape.head_dim)
    keys = np.broadcast_to(material.keys[: plan.kept_count], size)
    values = np.broadcast_to(material.values[: plan.kept_count], size)
    cells = np.stack(np.divmod(np.arange(plan.kept_count, dtype=np.uint16), _GRID), axis=1)
    root.mkdir()
    with closing(
        SessionWriter.open(
            root, SESSION, geometry=shape, encoding=plan.encoding, limits=plan.limits
        )
    ) as writer:
        for index in range(plan.unit_count):
            unit = Unit(
                index=index,
                first_pts_s=UNIT_S * index,
                last_pts_s=UNIT_S * index,
                token_count=plan.kept_count,
                position_span=material.unit_tokens,
                cells=cells,
                drop_fraction=1 - plan.kept_count / material.unit_tokens,
                gap_before=False,
                thumbnail_jpeg=plan.thumbnail,
            )
            writer.append(unit, keys, values, resume=b"")
            writer.publish()
        writer.flush()


def segment_bytes_an_hour(root: Path, unit_count: int) -> float:
    """Bytes of disk that the segment files take, scaled from the units written to an hour."""
    folder = session_folder(root, SESSION)
    taken = sum(path_bytes(segment_path(folder, number)) for number in segment_numbers(folder))
    return taken / unit_count * UNITS_AN_HOUR


def size_rows(folder: Path, shape: Geometry, material: Material, unit_count: int) -> list[Row]:
    """Writes sessions as the service does by default, and rows of what their files take.

    Args:
        folder: where to write; each session is removed once it is measured.
        shape: of the sessions.
        material: one unit.
        unit_count: units of each session.
    """
    index_bytes = _index_bytes(folder / INDEX_NAME, shape)
    whole, picture = material.unit_tokens, _thumbnail()
    rows = [
        Row(
            name="index of mean keys: GiB of disk per stream hour, whatever is kept",
            value=index_bytes / _GIB,
            unit="GiB",
        )
    ]
    whole_gib: float | None = None
    for encoding in _ENCODINGS:
        for drop_fraction in _DROP_FRACTIONS:
            kept_count = round(whole * (1 - drop_fraction))
            plan = SessionPlan(
                encoding=encoding,
                kept_count=kept_count,
                unit_count=unit_count,
                limits=BlockLimits(),
                thumbnail=picture,
            )
            root = folder / f"{encoding}-{kept_count}"
            write_session(root, shape, material, plan)
            gib = (segment_bytes_an_hour(root, unit_count) + index_bytes) / _GIB
            shutil.rmtree(root)
            recommended = (encoding, drop_fraction) == _RECOMMENDED
            note = " (the built-in model's default)" if recommended else ""
            rows.append(
                Row(
                    name=f"{encoding}, {kept_count} of {whole} tokens a frame kept{note}: GiB of "
                    f"disk per stream hour, index included (model, {whole} kept / it)",
                    value=gib,
                    unit="GiB",
                    baseline=whole_gib,
                    ratio=None if whole_gib is None else whole_gib / gib,
                    target=">= 10" if recommended else "",
                )
            )
            whole_gib = whole_gib or gib
    return rows


def _index_bytes(path: Path, shape: Geometry) -> int:
    """Bytes of disk of the key index of an hour: it grows by large chunks, so it is not scaled."""
    dim = shape.kv_head_count * shape.head_dim
    rows = np.zeros((shape.layer_count, dim), np.float32)
    with closing(
        KeyIndexWriter.create(path, layer_count=shape.layer_count, dim=dim, epoch=1)
    ) as index:
        for _ in range(UNITS_AN_HOUR):
            index.append(rows)
    taken = path_bytes(path)
    path.unlink()
    return taken


def _thumbnail() -> bytes:
    """A unit's picture, of soft shapes: about what a camera's takes."""
    side = np.linspace(0, 4 * np.pi, _PICTURE_PX)
    waves = [np.sin(side * a)[:, None] * np.cos(side * b) for a, b in ((1, 2), (2, 1), (3, 3))]
    return thumbnail_jpeg(np.stack([(127 * wave + 128).astype(np.uint8) for wave in waves], axis=2))
