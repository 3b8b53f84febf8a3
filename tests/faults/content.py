"""What sessions hold: units of samples, and of scenes where they are thinned."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvstore.errors import StoreFullError
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from kvstore.writer import SessionWriter
from tests.kvstore.samples import append, open_writer, unit_is
from tests.kvstore.thinned import append_scenes, is_part_of, thinning_writer
from tests.kvstore.thinning_lives import SMALL_SCENE, THIN_LIMITS

THINNING = replace(THIN_LIMITS, budget=replace(THIN_LIMITS.budget, session_bytes=3 << 19))
"""Full after about 60 units, and as thin as it gets after about 120."""


def open_for(root: Path, limits: BlockLimits, **changes: Any) -> SessionWriter:
    """A writer under these limits."""
    if limits.budget.on_full == "thin":
        return thinning_writer(root, limits=limits, geometry=SMALL_SCENE, **changes)
    return open_writer(root, limits=limits, **changes)


def append_to(writer: SessionWriter, count: int, *, salt: int = 0) -> None:
    """Append and publish the next `count` units."""
    if writer.geometry == SMALL_SCENE:
        append_scenes(writer, count, salt=salt)
    else:
        append(writer, count, salt=salt)


def append_if_room(writer: SessionWriter, salt: int, *, flushes: bool = False) -> None:
    """Append the next unit; a session that is as thin as it gets stays as it is."""
    with suppress(StoreFullError):
        append_to(writer, 1, salt=salt)
        if flushes:
            writer.flush()


def is_right(reader: SessionReader, snapshot: Snapshot, index: int, *, salt: int = 0) -> bool:
    """Whether a unit is what was appended, or where sessions are thinned, a part of it."""
    if reader.geometry == SMALL_SCENE:
        return is_part_of(reader, snapshot, index, salt=salt)
    return unit_is(reader, snapshot, index, salt=salt)
