"""Giving a log to a session of another name: new headers, the same keys and values.

Every header names its session and the one before it, so all of them are written again, in place.
Only for a log that nobody else sees yet: a crash in between leaves neither name's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvstore.diskio import DiskIO, write_fully
from kvstore.errors import BlockCorruptError
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.paths import segment_path, session_hash
from kvstore.scan import read_page


def rename_log(folder: Path, numbers: Sequence[int], session_id: str, io: DiskIO) -> None:
    """Write the headers of whole, verified segments for another session, durably.

    Args:
        numbers: the segments, ascending. They hold blocks up to their last byte.

    Raises:
        BlockCorruptError: a header is damaged.
        OSError: the disk failed.
    """
    chain: int | None = None
    for number in numbers:
        path = segment_path(folder, number)
        fd = os.open(path, os.O_RDWR)
        try:
            chain = _rename_segment(fd, path, session_id, chain, io)
            io.fsync(fd)
        finally:
            os.close(fd)


def _rename_segment(fd: int, path: Path, session_id: str, chain: int | None, io: DiskIO) -> int:
    """Write one segment's headers; `chain` is the new hash of the block before it.

    Without one (the first that is there) the old stays: 0, or that of a block long dropped.
    """
    segment = SegmentHeader.unpack(read_page(fd, 0), path)
    if segment is None:
        raise BlockCorruptError(session_id, 0, f"the header of {path.name} is damaged")
    hash_ = session_hash(session_id)
    previous = segment.previous_hash if chain is None else chain
    renamed = replace(segment, session_id=session_id, session_hash=hash_, previous_hash=previous)
    write_fully(io, fd, [renamed.pack()], 0)
    offset, size = PAGE_BYTES, os.fstat(fd).st_size
    while offset < size:
        header = BlockHeader.unpack(read_page(fd, offset), path)
        if header is None:
            raise BlockCorruptError(session_id, segment.first_block, f"{path.name} at {offset}")
        page = replace(header, session_hash=hash_, previous_hash=previous).pack()
        write_fully(io, fd, [page], offset)
        previous = int.from_bytes(page[-8:], "little")
        offset += header.span_bytes(segment.layout)
    # Behind a segment that was written anew the next one refers to the hash that was then kept.
    return segment.chain_end_hash or previous
