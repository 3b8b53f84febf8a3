"""Where a session's chain of blocks goes on: what the next block's header must say."""

from __future__ import annotations

from typing import NamedTuple

from kvstore.encoding import Layout
from kvstore.floor import Floor
from kvstore.format import BlockHeader, SegmentHeader


class ChainEnd(NamedTuple):
    """The end of what is known of a chain."""

    next_block: int
    next_unit: int
    hash: int
    """What the next header must name as the one before it."""
    epoch: int
    """The next header's is not lower."""

    @classmethod
    def at(cls, floor: Floor) -> ChainEnd:
        """Nothing is known above the floor yet."""
        return cls(floor.first_block, floor.first_unit, floor.previous_hash, 0)

    @classmethod
    def behind(cls, header: BlockHeader) -> ChainEnd:
        """The chain has come to this block."""
        return cls(
            header.sequence + 1, header.first_unit + header.unit_count, header.hash, header.epoch
        )

    def past(self, segment: SegmentHeader) -> ChainEnd:
        """The same end seen from the next segment: `segment` ends here."""
        return self._replace(hash=segment.chain_end_hash or self.hash)

    def admits(self, header: BlockHeader, session_hash: int, layout: Layout) -> bool:
        """Whether this is the next block of this session."""
        return (
            header.session_hash == session_hash
            and header.layout_fingerprint == layout.fingerprint
            and header.sequence == self.next_block
            and header.first_unit == self.next_unit
            and self.links(header)
        )

    def links(self, header: BlockHeader) -> bool:
        """Whether the chain of hashes and the order of epochs lead to this block."""
        return header.previous_hash == self.hash and header.epoch >= self.epoch

    def admits_segment(self, header: SegmentHeader, session_hash: int) -> bool:
        """Whether the chain goes on in a segment with this header."""
        return (
            header.session_hash == session_hash
            and header.first_block == self.next_block
            and header.first_unit == self.next_unit
            and header.previous_hash == self.hash
        )
