"""Writing a segment anew with fewer tokens, in place of the old one: either is there, never a mix.

The new file is written aside, under a name of this writer's epoch, and synced; then it is renamed
over the old one and the folder is synced; then readers are told. A crash leaves the old one or the
new one, and perhaps a file aside, which goes at the next recovery. All of both is exact: what stays
of a unit is copied byte by byte, and the chain of hashes goes on behind it as before.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.blockread import Block
from kvstore.diskio import Buffer, DiskIO, write_fully
from kvstore.format import PAGE_BYTES
from kvstore.mean_keys import key_numbers
from kvstore.paths import segment_path
from kvstore.pins import Span, touches
from kvstore.thinblock import DamagedSegmentError, ThinBlock, read_extents, stored_keys
from kvstore.thinning import LOST_FRACTIONS, compared_layers, directions, lost_tokens
from kvstore.wholesegment import WholeSegment

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_SUFFIX = ".thin"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoomAsideError(Exception):
    """Internal: the disk filled up while a segment was written aside. Nothing has changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What of a segment may go, and what it is compared by; see `kvstore.thinning`."""

    segment: WholeSegment
    keys: Array
    units: Array
    cells: Array
    may_lose: Array

    @classmethod
    def of(cls, fd: int, segment: WholeSegment, pins: Sequence[Span]) -> Comparison:
        """Read what is compared.

        Raises:
            DamagedSegmentError: it is not as it was written, or cannot be read.
        """
        rows = np.concatenate([block.table.rows for block in segment.blocks])
        try:
            keys = np.concatenate([_directions(fd, block) for block in segment.blocks])
        except OSError as error:
            raise DamagedSegmentError(str(error)) from error
        return cls(
            segment=segment,
            keys=keys,
            units=np.repeat(np.arange(len(rows)), rows["token_count"]),
            cells=np.concatenate([block.table.cells for block in segment.blocks]),
            may_lose=~touches(pins, rows["first_pts_s"], rows["last_pts_s"]),
        )

    def without(self, fraction: float) -> list[ThinBlock]:
        """The segment's blocks without so much of what may go."""
        lost = lost_tokens(self.keys, self.units, self.cells, self.may_lose, fraction)
        blocks = self.segment.blocks
        stops = np.cumsum([block.header.token_count for block in blocks])
        return [
            ThinBlock(block, kept)
            for block, kept in zip(blocks, np.split(~lost, stops[:-1]), strict=True)
        ]


def _directions(fd: int, block: Block) -> Array:
    layout = block.place.layout
    counts = block.table.rows["token_count"].tolist()
    by_layer = []
    for layer in compared_layers(layout.geometry.layer_count):
        extents = read_extents(fd, block, layer)
        keys = [
            stored_keys(layout, extent, count)
            for extent, count in zip(extents, counts, strict=True)
        ]
        by_layer.append(key_numbers(layout.geometry, np.concatenate(keys)))
    return directions(np.stack(by_layer))


def choose_tokens(fd: int, segment: WholeSegment, pins: Sequence[Span]) -> list[ThinBlock] | None:
    """Choose what stays of each block; None when the segment's file gets no smaller any more.

    About half of the tokens go, and more where that frees not a single page.

    Raises:
        DamagedSegmentError: what is compared is not as it was written.
    """
    comparison = Comparison.of(fd, segment, pins)
    for fraction in LOST_FRACTIONS:
        blocks = comparison.without(fraction)
        if file_bytes(blocks) < segment.stop:
            return blocks
    return None


def file_bytes(blocks: Sequence[ThinBlock]) -> int:
    """Bytes of the segment file that `rewrite` makes."""
    return PAGE_BYTES + sum(block.span_bytes for block in blocks)


def rewrite(
    folder: Path,
    old_fd: int,
    number: int,
    segment: WholeSegment,
    blocks: Sequence[ThinBlock],
    *,
    epoch: int,
    io: DiskIO,
    check_owned: Callable[[], None],
) -> None:
    """Put the thinner segment in the place of the old one, durably.

    Args:
        old_fd: of the old file.
        number: of the segment.
        blocks: all of the segment's.
        epoch: of this writer.
        check_owned: raises, right before the change, when it is not this writer's to make.

    Raises:
        DamagedSegmentError, TornBlockError: the old one is damaged. Nothing has changed.
        NoRoomAsideError: the disk is full. Nothing has changed.
        WriterFencedError: from `check_owned`; the file aside is left to the next recovery.
        OSError: the disk failed.
    """
    path = segment_path(folder, number)
    aside = folder / f"{path.name}.{epoch}{_SUFFIX}"
    if aside.exists():
        io.unlink(aside)
    fd = io.create(aside)
    try:
        io.fallocate(fd, 0, file_bytes(blocks))
        header = replace(
            segment.header,
            generation=segment.header.generation + 1,
            chain_end_hash=segment.chain_end_hash,
        )
        write_fully(io, fd, [header.pack()], 0)
        offset, previous_hash = PAGE_BYTES, header.previous_hash
        for block in blocks:
            pages = _pages(block, old_fd, previous_hash)
            write_fully(io, fd, pages, offset)
            offset += sum(memoryview(page).nbytes for page in pages)
            previous_hash = int.from_bytes(bytes(pages[0])[-8:], "little")
        io.fsync(fd)
    except Exception as error:
        os.close(fd)
        io.unlink(aside)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise NoRoomAsideError from error
        raise
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    check_owned()
    io.rename(aside, path)
    # The old one's space is free only when the file system has written down that it is gone.
    io.fsync_folder(folder)


def _pages(block: ThinBlock, old_fd: int, previous_hash: int) -> list[Buffer]:
    try:
        return block.pages(old_fd, previous_hash=previous_hash)
    except OSError as error:  # only reads: what cannot be read is damage of the old one
        raise DamagedSegmentError(str(error)) from error


def sweep_aside(folder: Path, io: DiskIO) -> None:
    """Remove what interrupted rewritings left. A segment is never among it."""
    left = sorted(folder.glob("seg-*" + _SUFFIX))
    for path in left:
        io.unlink(path)
    if left:
        io.fsync_folder(folder)
        logger.info(
            "files of interrupted thinning removed",
            extra={"session": folder.name, "file_count": len(left)},
        )
