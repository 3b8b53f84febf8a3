"""The read-only walk over a session's blocks: which are good, and where the log ends.

The rule (after etcd and BookKeeper): damage in the unproven tail is a torn write and ends the log;
damage below what something later proves durable is an error. Proof is a later block header's or
segment header's count, or the CTL page of the running system.

And a rule against writers that come too late (paused, then superseded, on a disk where no lock
kept them out): once an epoch has begun at a block, as a segment's header or the CTL page says,
every block from there on is of that epoch or a later one. What an earlier writer puts there is
void, whenever it was written.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstore.blockread import BlockPlace, verify_block
from kvstore.chain import ChainEnd
from kvstore.encoding import Layout
from kvstore.errors import BlockCorruptError, GeometryMismatchError
from kvstore.floor import Floor, read_floor
from kvstore.format import BLOCK_MAGIC, PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.paths import segment_numbers, segment_path

_CHUNK_BYTES = 1 << 20
_MAGIC_WORD = int.from_bytes(BLOCK_MAGIC, "little")


@dataclass(slots=True)
class LogScan:
    """What a walk found."""

    layout: Layout | None
    blocks: list[BlockPlace]
    torn_bytes: int
    """Bytes of an unproven tail behind the end."""
    highest_epoch: int
    segment_numbers: list[int]
    """Of all files, those below the floor too."""
    floor: Floor
    chain_hash: int
    """What the next block's header names as the one before it."""

    @property
    def block_count(self) -> int:
        """Blocks of the session, dropped ones included."""
        return self.floor.first_block + len(self.blocks)

    @property
    def kept_segment(self) -> int:
        """The segment of the last good block; when there is none, the one before the floor."""
        if not self.blocks:
            return self.floor.first_segment - 1
        return self.blocks[-1].segment_number

    @property
    def kept_offset(self) -> int:
        """Where the next block goes in `kept_segment`."""
        return self.blocks[-1].stop if self.blocks else 0

    @property
    def unit_count(self) -> int:
        """Units of the session, dropped ones included."""
        if not self.blocks:
            return self.floor.first_unit
        last = self.blocks[-1].header
        return last.first_unit + last.unit_count


def read_page(fd: int, offset: int) -> bytes:
    """The page at `offset`, shorter (or empty) at the end of the file."""
    return os.pread(fd, PAGE_BYTES, offset)


class _Walk:
    """State of one scan."""

    def __init__(self, folder: Path, session_id: str, session_hash: int, floor: Floor) -> None:
        self.floor = floor
        self.end = ChainEnd.at(floor)
        self.folder = folder
        self.session_id = session_id
        self.session_hash = session_hash
        self.layout: Layout | None = None
        self.blocks: list[BlockPlace] = []
        self.highest_epoch = 0
        self.proven = floor.first_block
        self.begun: list[tuple[int, int]] = []
        """(first block, epoch) where epochs are known to have begun."""

    def note_segments(self, numbers: Sequence[int]) -> None:
        """Read where the segments' epochs have begun; written anew, a segment keeps its epoch."""
        for number in numbers:
            path = segment_path(self.folder, number)
            with open(path, "rb") as file:
                header = self.segment_header(file.fileno(), path)
            if header is not None:
                self.begun.append((header.first_block, header.epoch))

    def least_epoch(self, sequence: int) -> int:
        """What the epoch of this block is at least."""
        return max((epoch for first, epoch in self.begun if sequence >= first), default=0)

    def segment_header(self, fd: int, path: Path) -> SegmentHeader | None:
        """The segment's header, None when damaged; a foreign one is not ours to cut."""
        header = SegmentHeader.unpack(read_page(fd, 0), path)
        if header is not None and header.session_hash != self.session_hash:
            reason = f"{path.name} belongs to session {header.session_id!r}"
            raise BlockCorruptError(self.session_id, self.end.next_block, reason)
        return header

    def enter_segment(self, fd: int, path: Path) -> SegmentHeader | None:
        """Check the segment's header; None when the log does not go on in it."""
        header = self.segment_header(fd, path)
        if header is None or not self.end.admits_segment(header, self.session_hash):
            return None
        if self.layout is None:
            self.layout = header.layout
        if header.layout != self.layout:
            raise GeometryMismatchError(self.session_id, self.layout, header.layout)
        self.highest_epoch = max(self.highest_epoch, header.epoch)
        self.proven = max(self.proven, header.first_block)
        return header

    def walk_segment(self, fd: int, path: Path, number: int, segment: SegmentHeader) -> int:
        """Take the good blocks of a segment and return where they end."""
        layout = segment.layout
        offset = PAGE_BYTES
        size = os.fstat(fd).st_size
        while True:
            header = BlockHeader.unpack(read_page(fd, offset), path)
            if header is None or not self.end.admits(header, self.session_hash, layout):
                break
            if header.epoch < self.least_epoch(header.sequence):
                break
            place = BlockPlace(header, layout, number, offset)
            if place.stop > size:
                break
            self.blocks.append(place)
            self.end = ChainEnd.behind(header)
            self.highest_epoch = max(self.highest_epoch, header.epoch)
            self.proven = max(self.proven, header.durable_block_count)
            offset = place.stop
        self.end = self.end.past(segment)
        return offset

    def gather_evidence(self, fd: int, path: Path, offset: int) -> int:
        """Look at every page from `offset` for headers; return the bytes that are not zero."""
        content_end = offset
        while chunk := os.pread(fd, _CHUNK_BYTES, offset):
            whole = len(chunk) // PAGE_BYTES * PAGE_BYTES
            words = np.frombuffer(chunk[:whole], dtype="<u8").reshape(-1, PAGE_BYTES // 8)
            used = np.flatnonzero(words.any(axis=1))
            if len(used):
                content_end = offset + (int(used[-1]) + 1) * PAGE_BYTES
            if any(chunk[whole:]):
                content_end = offset + len(chunk)
            for page in np.flatnonzero(words[:, 0] == _MAGIC_WORD).tolist():
                start = page * PAGE_BYTES
                header = BlockHeader.unpack(chunk[start : start + PAGE_BYTES], path)
                if header is not None and header.session_hash == self.session_hash:
                    self.proven = max(self.proven, header.durable_block_count)
                    self.highest_epoch = max(self.highest_epoch, header.epoch)
            offset += len(chunk)
        return content_end

    def weigh_rest(self, numbers: Sequence[int], end_segment: int, end_offset: int) -> int:
        """Gather evidence behind the end of the log and return the bytes that lie there."""
        torn_bytes = 0
        for number in numbers:
            if number < end_segment:
                continue
            path = segment_path(self.folder, number)
            start = end_offset if number == end_segment else 0
            with open(path, "rb") as file:
                fd = file.fileno()
                if start == 0:
                    header = self.segment_header(fd, path)
                    if header is not None:
                        self.proven = max(self.proven, header.first_block)
                        self.highest_epoch = max(self.highest_epoch, header.epoch)
                torn_bytes += self.gather_evidence(fd, path, start) - start
        return torn_bytes


def scan_log(
    folder: Path,
    session_id: str,
    session_hash: int,
    *,
    acknowledged_block_count: int = 0,
    begun_epoch: int = 0,
) -> LogScan:
    """Walk a session's segments and decide where its log ends.

    Args:
        acknowledged_block_count: blocks known to be acknowledged from elsewhere (CTL).
        begun_epoch: the last epoch known to have begun, by the same witness; blocks that it does
            not count as acknowledged are of that epoch, or void.

    Raises:
        BlockCorruptError: an acknowledged block is damaged or missing.
        GeometryMismatchError: segments of different shapes lie in one folder.
        FormatVersionError: a file of another version.
        FileNotFoundError: a file was removed meanwhile.
    """
    floor = read_floor(folder, session_id, session_hash)
    while True:
        try:
            walk = _Walk(folder, session_id, session_hash, floor)
            walk.begun.append((acknowledged_block_count, begun_epoch))
            return _scan(walk, acknowledged_block_count)
        except (BlockCorruptError, FileNotFoundError):
            # A writer may have dropped segments under our eyes.
            risen = read_floor(folder, session_id, session_hash)
            if risen == floor:
                raise
            floor = risen


def _scan(walk: _Walk, acknowledged_block_count: int) -> LogScan:
    floor, folder, session_id = walk.floor, walk.folder, walk.session_id
    numbers = segment_numbers(folder)
    walk.note_segments([number for number in numbers if number >= floor.first_segment])
    end_segment, end_offset = floor.first_segment, 0
    for number in itertools.takewhile(numbers.__contains__, itertools.count(end_segment)):
        path = segment_path(folder, number)
        with open(path, "rb") as file:
            segment = walk.enter_segment(file.fileno(), path)
            if segment is None:
                break
            end_segment = number
            end_offset = walk.walk_segment(file.fileno(), path, number, segment)
    torn_bytes = walk.weigh_rest(numbers, end_segment, end_offset)
    proven = max(walk.proven, acknowledged_block_count)
    if proven > walk.end.next_block:
        reason = f"{proven} blocks were acknowledged, the log ends before"
        raise BlockCorruptError(session_id, walk.end.next_block, reason)
    scan = LogScan(
        layout=walk.layout,
        blocks=walk.blocks,
        torn_bytes=torn_bytes,
        highest_epoch=walk.highest_epoch,
        segment_numbers=numbers,
        floor=floor,
        chain_hash=walk.end.hash,
    )
    _cut_torn_payload(scan, folder, session_id, walk.proven, proven)
    return scan


def _cut_torn_payload(
    scan: LogScan, folder: Path, session_id: str, proven_by_headers: int, proven: int
) -> None:
    """Verify the payload of blocks no header proves; end the log at the first that is torn."""
    first_block = scan.floor.first_block
    for index in range(proven_by_headers, scan.block_count):
        place = scan.blocks[index - first_block]
        with open(segment_path(folder, place.segment_number), "rb") as file:
            fault = verify_block(file.fileno(), place)
        if fault is None:
            continue
        if index < proven:
            raise BlockCorruptError(session_id, index, fault)
        torn = scan.blocks[index - first_block :]
        scan.chain_hash = torn[0].header.previous_hash
        scan.torn_bytes += sum(block.stop - block.offset for block in torn)
        del scan.blocks[index - first_block :]
        return
