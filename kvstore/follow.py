"""How a reader learns of new blocks: it follows the chain of headers, and trusts nothing else."""

from __future__ import annotations

from pathlib import Path

from kvstore.blockread import Block, BlockPlace, TornBlockError, read_block
from kvstore.chain import ChainEnd
from kvstore.encoding import Layout
from kvstore.errors import BlockCorruptError
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.paths import segment_path, session_hash
from kvstore.scan import read_page
from kvstore.segmentfiles import SegmentFiles
from kvstore.units import UnitCatalog


class LogFollower:
    """Reads the blocks behind those a catalog holds. Not thread-safe."""

    def __init__(self, folder: Path, session_id: str, files: SegmentFiles) -> None:
        self._folder = folder
        self._session_id = session_id
        self._session_hash = session_hash(session_id)
        self._files = files

    def follow(self, catalog: UnitCatalog, layout: Layout, block_count: int) -> None:
        """Add blocks to the catalog until it holds `block_count`, all of which are durable.

        Raises:
            BlockCorruptError: one of them is damaged.
            FileNotFoundError: a segment is missing.
        """
        while catalog.block_count < block_count:
            catalog.add_block(self._next_block(catalog, layout))

    def _next_block(self, catalog: UnitCatalog, layout: Layout) -> Block:
        end = ChainEnd.at(catalog.floor)
        number = catalog.floor.first_segment
        last = catalog.places.last
        if last is not None:
            end = ChainEnd.behind(last.header)
            number = last.segment_number
            block = self._read(number, last.stop, self._bounded(end, number), layout)
            if block is not None:
                return block
            end = end.past(self._segment(number, end))
            number += 1
        segment = self._segment(number, end)
        if segment.layout != layout or not end.admits_segment(segment, self._session_hash):
            reason = f"{segment_path(self._folder, number).name} does not follow the one before it"
            raise self._damaged(end.next_block, reason)
        block = self._read(number, PAGE_BYTES, end, layout)
        if block is None:
            raise self._damaged(end.next_block, "its header is damaged")
        return block

    def _bounded(self, end: ChainEnd, number: int) -> ChainEnd:
        """The chain's end in segment `number`, where a late writer's block may lie behind it.

        Once a later epoch has begun a segment at the next block, no earlier writer's is (see scan).
        """
        try:
            following = self._segment(number + 1, end)
        except (FileNotFoundError, BlockCorruptError):
            return end
        if following.first_block > end.next_block:
            return end
        return end._replace(epoch=max(end.epoch, following.epoch))

    def _read(self, number: int, offset: int, end: ChainEnd, layout: Layout) -> Block | None:
        """The block that follows the chain's end, if it lies at this place."""
        path = segment_path(self._folder, number)
        with self._files.use(number) as fd:
            header = BlockHeader.unpack(read_page(fd, offset), path)
            if header is None or not end.admits(header, self._session_hash, layout):
                return None
            try:
                return read_block(fd, BlockPlace(header, layout, number, offset))
            except TornBlockError as error:
                raise self._damaged(header.sequence, str(error)) from error

    def _segment(self, number: int, end: ChainEnd) -> SegmentHeader:
        path = segment_path(self._folder, number)
        with self._files.use(number) as fd:
            header = SegmentHeader.unpack(read_page(fd, 0), path)
        if header is None or header.session_hash != self._session_hash:
            raise self._damaged(end.next_block, f"the header of {path.name} is damaged or foreign")
        return header

    def _damaged(self, block_index: int, reason: str) -> BlockCorruptError:
        return BlockCorruptError(self._session_id, block_index, reason)
