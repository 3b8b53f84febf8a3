"""Dropping the oldest of a session that nobody writes: the same drop as a writer's, under its lock.

No epoch begins and nothing is written but the floor, so the key index and open readers stay good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from kvstore.blockread import BlockPlace, TornBlockError, read_block
from kvstore.control import ControlPage
from kvstore.diskio import DiskIO
from kvstore.diskuse import path_bytes
from kvstore.dropping import drop_below
from kvstore.errors import BlockCorruptError, SessionNotFoundError, WriterFencedError
from kvstore.floor import Floor
from kvstore.locking import lock_session, release_session
from kvstore.paths import TOMBSTONE_NAME, segment_path, session_folder, session_hash
from kvstore.pins import PinsNow
from kvstore.retention import Segment, droppable, pin_check
from kvstore.scan import LogScan, scan_log
from kvstore.session import record_held

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSegment:
    """A segment of a session as it lies on the disk. Times of units are the stream's."""

    floor: Floor
    """What the floor is once this segment is the first."""
    token_count: int
    block_count: int
    disk_bytes: int
    first_pts_s: float
    """Of the first frame of its first unit."""
    last_pts_s: float
    """Of the last frame of its last unit."""
    written_unix_s: float
    """By the wall clock of its last block."""

    @property
    def number(self) -> int:
        """The number in its file's name."""
        return self.floor.first_segment


def stored_segments(root: Path, session_id: str) -> list[StoredSegment]:
    """Look at a session's segments, oldest first; takes no lock.

    Raises:
        SessionNotFoundError: there is no such session, or it is being deleted.
        BlockCorruptError: a header or unit table is damaged.
        FileNotFoundError: a writer changed it meanwhile.
    """
    folder = session_folder(root, session_id)
    _check_exists(folder, session_id)
    control = ControlPage.open(folder, session_hash(session_id))
    try:
        return _segments(folder, session_id, _scan(folder, session_id, control))
    finally:
        if control is not None:
            control.close()


def drop_front(
    root: Path,
    session_id: str,
    *,
    before_segment: int,
    keep_tokens: int = 0,
    pinned: PinsNow = lambda: (),
    may_commit: Callable[[], bool] = lambda: True,
    io: DiskIO | None = None,
) -> int:
    """Drop the oldest segments of a session that has no writer, and return how many went.

    A crash leaves the drop done or not begun; what it left lying goes at the next one, or at the
    next recovery.

    Args:
        root: of the store.
        session_id: the session.
        before_segment: number of the first segment that is not to go.
        keep_tokens: what is left holds as many.
        pinned: as `SessionWriter.open` takes it; asked while the session's record cannot change.
        may_commit: asked last, before anything changes; see `SessionWriter.open`.
        io: the system calls.

    Raises:
        SessionLockedError: a writer has it.
        SessionNotFoundError: there is no such session, or it is being deleted.
        BlockCorruptError: a header or unit table is damaged; nothing was dropped.
        WriterFencedError: `may_commit` said no.
        OSError: the disk failed; recovery finishes it, or finds nothing begun.
    """
    io = io or DiskIO()
    folder = session_folder(root, session_id)
    if not folder.is_dir():
        raise SessionNotFoundError(session_id)
    hash_ = session_hash(session_id)
    with ExitStack() as held:
        held.callback(release_session, lock_session(folder, session_id))
        _check_exists(folder, session_id)
        control = ControlPage.open(folder, hash_, writable=True)
        if control is not None:
            held.callback(control.close)
        segments = _segments(folder, session_id, _scan(folder, session_id, control))
        # Nothing is pinned between the question for pins and the drop.
        held.enter_context(record_held(root, session_id))
        is_pinned = pin_check(folder, pinned, on_damage=partial(_tell_undroppable, session_id))
        may_go = droppable(segments, keep_tokens=keep_tokens, is_pinned=is_pinned)
        wanted_count = sum(1 for segment in segments if segment.number < before_segment)
        count = sum(1 for _ in islice(may_go, wanted_count))
        if not count:
            return 0
        if not may_commit():
            raise WriterFencedError(session_id)
        announce = control.set_first_unit if control is not None else _nobody
        drop_below(folder, hash_, segments[count].floor, io, announce)
        if control is not None:
            control.sync()  # its counts are looked at after a power loss too
    return count


def _check_exists(folder: Path, session_id: str) -> None:
    if not folder.is_dir() or (folder / TOMBSTONE_NAME).exists():
        raise SessionNotFoundError(session_id)


def _nobody(first_unit: int) -> None:
    """No page to tell readers by: one that meets a missing file reads the floor."""


def _tell_undroppable(session_id: str, segment: Segment, error: Exception) -> None:
    logger.warning(
        "a damaged segment is not dropped: what is pinned may be in it",
        extra={"session": session_id, "segment": segment.number, "reason": str(error)},
    )


def _scan(folder: Path, session_id: str, control: ControlPage | None) -> LogScan:
    acknowledged, begun_epoch = control.begun() if control else (0, 0)
    return scan_log(
        folder,
        session_id,
        session_hash(session_id),
        acknowledged_block_count=acknowledged,
        begun_epoch=begun_epoch,
    )


def _segments(folder: Path, session_id: str, scan: LogScan) -> list[StoredSegment]:
    found = []
    for number, blocks in groupby(scan.blocks, key=lambda place: place.segment_number):
        places = list(blocks)
        first, last = places[0].header, places[-1].header
        path = segment_path(folder, number)
        first_pts_s, last_pts_s = _times(path, session_id, places)
        found.append(
            StoredSegment(
                floor=Floor(
                    first_segment=number,
                    first_block=first.sequence,
                    first_unit=first.first_unit,
                    previous_hash=first.previous_hash,
                ),
                token_count=sum(place.header.token_count for place in places),
                block_count=len(places),
                disk_bytes=path_bytes(path),
                first_pts_s=first_pts_s,
                last_pts_s=last_pts_s,
                written_unix_s=last.created_unix_s,
            )
        )
    return found


def _times(path: Path, session_id: str, places: Sequence[BlockPlace]) -> tuple[float, float]:
    """When the first unit of a segment begins, and when its last one ends."""
    with open(path, "rb") as file:
        try:
            first = read_block(file.fileno(), places[0]).table.rows
            last = read_block(file.fileno(), places[-1]).table.rows
        except TornBlockError as error:
            raise BlockCorruptError(session_id, places[0].header.sequence, str(error)) from error
    return float(first["first_pts_s"][0]), float(last["last_pts_s"][-1])
