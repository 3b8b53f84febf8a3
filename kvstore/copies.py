"""Read-only copies of a store's folder as another location: backups, snapshots, replicas.

A copy is a folder like the store's own, as `cp -r`, `rsync` or a snapshot of the file system make
it. It may lag, miss sessions, be damaged itself or go away: whatever of it is not exactly what is
asked for counts as not there, and the next copy is asked.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kvstore.blockread import Block, BlockPlace, TornBlockError, read_block
from kvstore.errors import KVStoreError, SessionNotFoundError
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.location import SegmentAddress, SliceAddress
from kvstore.paths import segment_path, session_folder, session_hash, sessions_folder
from kvstore.scan import read_page
from kvstore.session import load_session
from kvstore.wholesegment import WholeSegment

logger = logging.getLogger(__name__)


_MAX_TOLD = 4096
"""Faults that are remembered: then all may be told once more."""


class _Faults:
    """Tells what is the matter with a copy: once a segment and cause, not at each read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: set[tuple[Path, str, int, str]] = set()

    def tell(self, root: Path, session_id: str, segment_number: int, cause: str) -> None:
        """Log it, unless it was."""
        fault = root, session_id, segment_number, cause
        with self._lock:
            if fault in self._told:
                return
            if len(self._told) >= _MAX_TOLD:
                self._told.clear()
            self._told.add(fault)
        logger.warning(
            "a copy of the store cannot give what is asked",
            extra={
                "session": session_id,
                "path": str(segment_path(session_folder(root, session_id), segment_number)),
                "cause": cause,
            },
        )


class StoreCopies:
    """See `kvstore.location.OtherLocation`. Opens a file for each slice and keeps none open."""

    def __init__(self, roots: Sequence[Path]) -> None:
        """Copies of one store's root, the first to be asked first. Nothing is looked at yet."""
        self._roots = tuple(roots)
        self._faults = _Faults()

    def faults(self) -> list[str]:
        """What is the matter with copies that cannot be used now, one line each."""
        found = []
        for root in self._roots:
            try:
                next(sessions_folder(root).iterdir(), None)
            except OSError as error:
                found.append(f"{root} is no copy of a store that can be read: {error.strerror}")
        return found

    def slice(self, wanted: SliceAddress, out: np.ndarray[Any, Any]) -> bool:
        """Fill `out` from the first copy that has the slice."""
        return any(_copy_slice(root, wanted, out, self._faults) for root in self._roots)

    def segment(self, wanted: SegmentAddress) -> WholeSegment | None:
        """The segment from the first copy that has it."""
        found = (_find_segment(root, wanted, self._faults) for root in self._roots)
        return next((segment for segment in found if segment is not None), None)


@contextmanager
def _segment(root: Path, session_id: str, number: int) -> Iterator[int]:
    """The descriptor of a copy's segment."""
    fd = os.open(segment_path(session_folder(root, session_id), number), os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _copy_slice(
    root: Path, wanted: SliceAddress, out: np.ndarray[Any, Any], faults: _Faults
) -> bool:
    place = wanted.place
    try:
        with _segment(root, wanted.session_id, place.segment_number) as fd:
            header = BlockHeader.unpack(read_page(fd, place.offset), root)
            if header is None or header.hash != place.header.hash:
                return False  # it has another block there, or this one of another generation
            read_bytes = os.preadv(fd, [out.data], wanted.offset)
    except FileNotFoundError:
        return False
    except (OSError, KVStoreError) as error:
        faults.tell(root, wanted.session_id, place.segment_number, str(error))
        return False
    if read_bytes != out.nbytes or xxhash.xxh3_64_intdigest(out.data) != wanted.checksum:
        cause = "keys and values do not match their checksum"
        faults.tell(root, wanted.session_id, place.segment_number, cause)
        return False
    return True


def _find_segment(root: Path, wanted: SegmentAddress, faults: _Faults) -> WholeSegment | None:
    try:
        if _created_unix_s(root, wanted.session_id) != wanted.created_unix_s:
            return None  # another session had this name then
        with _segment(root, wanted.session_id, wanted.number) as fd:
            header = SegmentHeader.unpack(read_page(fd, 0), root)
            if header is None or header.session_hash != session_hash(wanted.session_id):
                return None
            return WholeSegment(header, list(_intact_blocks(fd, root, header, wanted.number)))
    except FileNotFoundError:
        return None
    except (OSError, KVStoreError) as error:
        faults.tell(root, wanted.session_id, wanted.number, str(error))
        return None


def _intact_blocks(fd: int, root: Path, segment: SegmentHeader, number: int) -> Iterator[Block]:
    """Blocks with an intact header and unit table, up to the first header that is not."""
    offset = PAGE_BYTES
    while (header := BlockHeader.unpack(read_page(fd, offset), root)) is not None:
        if header.layout_fingerprint != segment.layout.fingerprint:
            return
        place = BlockPlace(header, segment.layout, number, offset)
        with suppress(TornBlockError):
            yield read_block(fd, place)
        offset = place.stop


def _created_unix_s(root: Path, session_id: str) -> float | None:
    try:
        return load_session(root, session_id).created_unix_s
    except SessionNotFoundError:
        return None
