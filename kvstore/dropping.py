"""Dropping the oldest of a session: whole segments, from the front. `kvstore.retention` says which.

The order makes a crash harmless at every step: the floor record is made durable, readers are told,
then the files go. Whatever still lies below the floor goes at the next recovery.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvstore.blockread import BlockPlace, TornBlockError, read_block
from kvstore.diskio import DiskIO
from kvstore.errors import BlockCorruptError
from kvstore.floor import Floor, clean_floor, write_floor
from kvstore.paths import segment_numbers, segment_path

logger = logging.getLogger(__name__)

_SEGMENTS_PER_RETENTION = 16
"""Whole segments go: one that spans more of what is kept than this share is closed early."""


@dataclass(slots=True)
class LogSegment:
    """A segment that is there."""

    floor: Floor
    """What the floor is once this segment is the first."""
    token_count: int = 0
    block_count: int = 0
    generation: int = 0
    """How often it was thinned."""
    least_for: tuple[tuple[float, float], ...] | None = None
    """The pinned spans under which nothing more can be thinned here; None: none are known."""
    first_pts_s: float = -math.inf
    """Of its first unit; -inf where it was not looked up."""
    last_pts_s: float = math.inf
    """Of its last unit; inf where it was not looked up."""
    written_unix_s: float = math.inf
    """By the wall clock of its last block."""

    @property
    def number(self) -> int:
        """The number in its file's name."""
        return self.floor.first_segment


class SegmentQueue:
    """The segments of a log, oldest first. Owned by the writer's thread."""

    def __init__(self, blocks: Sequence[BlockPlace]) -> None:
        """Take the good blocks above the floor."""
        self._segments: deque[LogSegment] = deque()
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
            self.add(header.token_count, written_unix_s=header.created_unix_s)
            self._segments[-1].generation = header.generation

    def learn_times(self, folder: Path, blocks: Sequence[BlockPlace]) -> None:
        """Read the times of the units in recovered segments.

        Raises:
            BlockCorruptError: a unit table is damaged.
        """
        spans = {segment.number: segment for segment in self._segments}
        for place in blocks:
            segment = spans[place.segment_number]
            with open(segment_path(folder, place.segment_number), "rb") as file:
                try:
                    rows = read_block(file.fileno(), place).table.rows
                except TornBlockError as error:
                    sequence = place.header.sequence
                    raise BlockCorruptError(folder.name, sequence, str(error)) from error
            if segment.floor.first_block == place.header.sequence:
                segment.first_pts_s = float(rows["first_pts_s"][0])
            segment.last_pts_s = float(rows["last_pts_s"][-1])

    def begin(self, floor: Floor) -> None:
        """A segment that starts where `floor` says comes behind the others."""
        self._segments.append(LogSegment(floor))

    def add(
        self,
        token_count: int,
        *,
        written_unix_s: float,
        first_pts_s: float = -math.inf,
        last_pts_s: float = math.inf,
    ) -> None:
        """A block of so many tokens was written to the last segment."""
        segment = self._segments[-1]
        if not segment.token_count:
            segment.first_pts_s = first_pts_s
        segment.last_pts_s = last_pts_s
        segment.written_unix_s = written_unix_s
        segment.token_count += token_count
        segment.block_count += 1

    def is_long(self, pts_s: float, retain_s: float) -> bool:
        """Whether the last segment spans so much of what is kept that it should not go on."""
        if not retain_s or not self._segments or not self._segments[-1].token_count:
            return False
        return pts_s - self._segments[-1].first_pts_s > retain_s / _SEGMENTS_PER_RETENTION

    def all(self) -> list[LogSegment]:
        """The segments, oldest first."""
        return list(self._segments)

    def thinned(self, segment: LogSegment, token_count: int) -> None:
        """A segment was written anew with so many tokens."""
        segment.token_count = token_count
        segment.generation += 1

    def floor_above(self, count: int) -> Floor:
        """The floor once the first `count` segments are gone."""
        return self._segments[count].floor

    def drop(self, count: int) -> None:
        """Forget the first `count` segments."""
        for _ in range(count):
            self._segments.popleft()


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
