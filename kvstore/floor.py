"""Where a session's log begins: what lies before it was dropped on purpose.

The record is durable before the first file goes. So a segment that is missing below the floor was
dropped, and one that is missing above it is damage. A segment that is still there below the floor
is what a crash left, and goes at the next recovery.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kvstore.diskio import DiskIO, write_fully
from kvstore.errors import (
    BlockCorruptError,
    FormatVersionError,
    KVStoreError,
    SessionNotFoundError,
    UnitDroppedError,
)
from kvstore.paths import session_hash

FLOOR_NAME = "FLOOR"
_NEW_NAME = "FLOOR.new"
_VERSION = 1
_MAGIC = b"LBKVFLR\0"
_FLOOR = struct.Struct("<8sIIQQQQQ")
_HASH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The first things of a session that are still there."""

    first_segment: int = 0
    first_block: int = 0
    first_unit: int = 0
    previous_hash: int = 0
    """What the first block's header says of the one before it; 0 at the start of the session."""


ORIGIN = Floor()
"""Nothing was dropped."""


def read_floor(folder: Path, session_id: str, owner_hash: int) -> Floor:
    """Read a session's floor.

    Raises:
        BlockCorruptError: the record is damaged: what is missing may be loss or may be not.
        FormatVersionError: it is one of another version.
    """
    path = folder / FLOOR_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ORIGIN
    content, stored = data[: _FLOOR.size], data[_FLOOR.size :]
    if (
        len(data) != _FLOOR.size + _HASH.size
        or _HASH.unpack(stored)[0] != xxhash.xxh3_64_intdigest(content)
        or content[: len(_MAGIC)] != _MAGIC
    ):
        raise BlockCorruptError(session_id, 0, "the record of what was dropped is damaged")
    _, version, _, found_hash, segment, block, unit, previous_hash = _FLOOR.unpack(content)
    if version != _VERSION:
        raise FormatVersionError(path, version, _VERSION)
    if found_hash != owner_hash:
        raise BlockCorruptError(session_id, 0, "the record of what was dropped is another's")
    return Floor(
        first_segment=segment, first_block=block, first_unit=unit, previous_hash=previous_hash
    )


def write_floor(folder: Path, owner_hash: int, floor: Floor, io: DiskIO) -> None:
    """Put the record in place of the one before; when this returns it is durable.

    A crash leaves the old one or the new one.

    Raises:
        OSError: the disk failed or is full; the old one may or may not still hold.
    """
    content = _FLOOR.pack(
        _MAGIC,
        _VERSION,
        0,
        owner_hash,
        floor.first_segment,
        floor.first_block,
        floor.first_unit,
        floor.previous_hash,
    )
    aside = folder / _NEW_NAME
    clean_floor(folder, io)
    fd = io.create(aside)
    try:
        sealed = content + _HASH.pack(xxhash.xxh3_64_intdigest(content))
        write_fully(io, fd, [sealed], 0)
        io.fsync(fd)
    finally:
        os.close(fd)
    io.rename(aside, folder / FLOOR_NAME)
    io.fsync_folder(folder)


def why_gone(folder: Path, session_id: str, unit_index: int) -> KVStoreError:
    """The error for a unit whose segment is not there any more."""
    first_unit = read_floor(folder, session_id, session_hash(session_id)).first_unit
    if unit_index < first_unit:
        return UnitDroppedError(session_id, unit_index, first_unit)
    return SessionNotFoundError(session_id)


def clean_floor(folder: Path, io: DiskIO) -> None:
    """Remove what an interrupted `write_floor` left."""
    if (folder / _NEW_NAME).exists():
        io.unlink(folder / _NEW_NAME)
