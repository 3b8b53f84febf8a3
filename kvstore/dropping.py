"""Dropping the oldest of a session: whole segments, from the front, and never the last one.

The order makes a crash harmless at every step: the floor record is made durable, readers are told,
then the files go. Whatever still lies below the floor goes at the next recovery.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kvstore.blockread import BlockPlace
from kvstore.diskio import DiskIO
from kvstore.diskuse import path_bytes
from kvstore.floor import Floor, clean_floor, write_floor
from kvstore.paths import segment_numbers, segment_path

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LogSegment:
    """A segment that is there."""

    floor: Floor
    """What the floor is once this segment is the first."""
    token_count: int = 0

    @property
    def number(self) -> int:
        """The number in its file's name."""
        return self.floor.first_segment


class SegmentQueue:
    """The segments of a log, oldest first. Owned by the writer's thread."""

    def __init__(self, blocks: Sequence[BlockPlace]) -> None:
        """Take the good blocks above the floor."""
        self._segments: deque[LogSegment] = deque()
        self._token_count = 0
        for place in blocks:
            header = place.header
            if not self._segments or self._segments[-1].number != place.segment_number:
                self.begin(
                    Floor(
                        first_segment=place.segment_number,
                        first_block=header.sequence,
                        first_unit=header.first_unit,
                        previous_hash=header.previous_hash,
                    )
                )
            self.add(header.token_count)

    def begin(self, floor: Floor) -> None:
        """A segment that starts where `floor` says comes behind the others."""
        self._segments.append(LogSegment(floor))

    def add(self, token_count: int) -> None:
        """A block of so many tokens was written to the last segment."""
        self._segments[-1].token_count += token_count
        self._token_count += token_count

    def droppable(self, keep_tokens: int) -> list[LogSegment]:
        """The segments that may go, oldest first: what is left holds `keep_tokens`."""
        found: list[LogSegment] = []
        left = self._token_count
        for segment in islice(self._segments, max(0, len(self._segments) - 1)):
            left -= segment.token_count
            if left < keep_tokens:
                break
            found.append(segment)
        return found

    def drop(self, count: int) -> Floor:
        """Forget the first `count` segments; the floor that is then."""
        for _ in range(count):
            self._token_count -= self._segments.popleft().token_count
        return self._segments[0].floor


def enough_to_free(folder: Path, segments: Sequence[LogSegment], wanted_bytes: int) -> int:
    """How many of the segments, oldest first, must go to free so much; all when they do not."""
    freed = 0
    for count, segment in enumerate(segments, start=1):
        freed += path_bytes(segment_path(folder, segment.number))
        if freed >= wanted_bytes:
            return count
    return len(segments)


def drop_below(
    folder: Path,
    session_hash: int,
    floor: Floor,
    io: DiskIO,
    announce: Callable[[int], None],
) -> None:
    """Make `floor` the session's floor and remove what lies below it.

    Args:
        announce: tells readers the first unit that is left.

    Raises:
        OSError: the disk failed; recovery finishes it, or finds nothing begun.
    """
    write_floor(folder, session_hash, floor, io)
    announce(floor.first_unit)
    remove_below(folder, floor, io)


def remove_below(folder: Path, floor: Floor, io: DiskIO) -> None:
    """Remove segments below a durable floor, as a crash or `drop_below` leaves them."""
    clean_floor(folder, io)
    gone = [number for number in segment_numbers(folder) if number < floor.first_segment]
    for number in gone:
        io.unlink(segment_path(folder, number))
    if gone:
        # The space is free only when the file system has written down that the files are gone.
        io.fsync_folder(folder)
        logger.info(
            "oldest segments dropped",
            extra={
                "session": folder.name,
                "segment_count": len(gone),
                "first_unit": floor.first_unit,
            },
        )
