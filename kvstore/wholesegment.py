"""Reading all blocks of one segment that is not written to any more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvstore.blockread import Block, BlockPlace, TornBlockError, read_block
from kvstore.chain import ChainEnd
from kvstore.errors import BlockCorruptError
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.scan import read_page


@dataclass(frozen=True, slots=True, eq=False)
class WholeSegment:
    """A segment's header and blocks."""

    header: SegmentHeader
    blocks: list[Block]

    @property
    def stop(self) -> int:
        """Bytes up to the end of the last block."""
        return self.blocks[-1].place.stop

    @property
    def chain_end_hash(self) -> int:
        """What the next segment's header names as the one before it."""
        return self.header.chain_end_hash or self.blocks[-1].header.hash


def read_segment(
    fd: int, path: Path, *, number: int, session_hash: int, session_id: str, block_count: int
) -> WholeSegment:
    """Read the headers and unit tables of a segment's first `block_count` blocks, all durable.

    Raises:
        BlockCorruptError: one is damaged or not there.
        FormatVersionError: it is one of another version.
    """
    header = SegmentHeader.unpack(read_page(fd, 0), path)
    if header is None or header.session_hash != session_hash:
        reason = f"the header of {path.name} is damaged or foreign"
        raise BlockCorruptError(session_id, 0, reason)
    end = ChainEnd(header.first_block, header.first_unit, header.previous_hash, 0)
    blocks: list[Block] = []
    offset = PAGE_BYTES
    while len(blocks) < block_count:
        found = BlockHeader.unpack(read_page(fd, offset), path)
        if found is None or not end.admits(found, session_hash, header.layout):
            raise BlockCorruptError(session_id, end.next_block, "its header is damaged")
        try:
            blocks.append(read_block(fd, BlockPlace(found, header.layout, number, offset)))
        except TornBlockError as error:
            raise BlockCorruptError(session_id, found.sequence, str(error)) from error
        end = ChainEnd.behind(found)
        offset = blocks[-1].place.stop
    return WholeSegment(header, blocks)
