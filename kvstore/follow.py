"""How a reader learns of new blocks: it follows the chain of headers, and trusts nothing else."""

from __future__ import annotations

import errno
from pathlib import Path

from kvstore.blockread import Block, BlockPlace, TornBlockError, read_block
from kvstore.chain import ChainEnd
from kvstore.elsewhere import Elsewhere
from kvstore.encoding import Layout
from kvstore.errors import BlockCorruptError
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.paths import segment_path, session_hash
from kvstore.scan import read_page
from kvstore.segmentfiles import SegmentFiles
from kvstore.units import UnitCatalog


class LogFollower:
    """Reads the blocks behind those a catalog holds. Not thread-safe."""

    def __init__(
        self, folder: Path, session_id: str, files: SegmentFiles, elsewhere: Elsewhere
    ) -> None:
        """`elsewhere` has what is damaged or missing here."""
        self._elsewhere = elsewhere
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
        self._elsewhere.look_anew()
        while catalog.block_count < block_count:
            catalog.add_block(self._next_block(catalog, layout))

    def _next_block(self, catalog: UnitCatalog, layout: Layout) -> Block:
        last = catalog.places.last
        if last is None:
            return self._first_block(
                catalog.floor.first_segment, ChainEnd.at(catalog.floor), layout
            )
        end, number = ChainEnd.behind(last.header), last.segment_number
        ended = False
        try:
            block = self._read(number, last.stop, self._bounded(end, number), layout)
            if block is not None:
                return block
            ended = True
            return self._first_block(
                number + 1, end.past(self._segment_before(number, end)), layout
            )
        except (BlockCorruptError, OSError) as error:
            found = self._elsewhere.next_block(number, end, layout) if _is_damage(error) else None
            if found is not None:
                return found
            if ended and self._holds_junk(number, last.stop):
                # The log did not go on in the next segment, so it did here.
                raise self._damaged(end.next_block, "its header is damaged") from error
            if isinstance(error, FileNotFoundError):
                # The segment is missing, and ended here: the log goes on in the next one.
                segment = self._segment_before(number, end)
                return self._first_block(number + 1, end.past(segment), layout)
            raise

    def _first_block(self, number: int, end: ChainEnd, layout: Layout) -> Block:
        """The block at the start of a segment."""
        try:
            segment = self._segment(number, end)
            if segment.layout != layout or not end.admits_segment(segment, self._session_hash):
                path = segment_path(self._folder, number)
                reason = f"{path.name} does not follow the one before it"
                raise self._damaged(end.next_block, reason)
            block = self._read(number, PAGE_BYTES, end, layout)
            if block is None:
                raise self._damaged(end.next_block, "its header is damaged")
            return block
        except (BlockCorruptError, OSError) as error:
            found = self._elsewhere.next_block(number, end, layout) if _is_damage(error) else None
            if found is None:
                raise
            return found

    def _segment_before(self, number: int, end: ChainEnd) -> SegmentHeader:
        """The header of the segment that holds the last block."""
        try:
            return self._segment(number, end)
        except (BlockCorruptError, OSError) as error:
            found = self._elsewhere.segment_header(number) if _is_damage(error) else None
            if found is None:
                raise
            return found

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

    def _holds_junk(self, number: int, offset: int) -> bool:
        """Whether something that is no block's header lies where a block may begin."""
        try:
            with self._files.use(number) as fd:
                page = read_page(fd, offset)
        except OSError:
            return False
        return any(page) and BlockHeader.unpack(page, segment_path(self._folder, number)) is None

    def _segment(self, number: int, end: ChainEnd) -> SegmentHeader:
        path = segment_path(self._folder, number)
        with self._files.use(number) as fd:
            header = SegmentHeader.unpack(read_page(fd, 0), path)
        if header is None or header.session_hash != self._session_hash:
            raise self._damaged(end.next_block, f"the header of {path.name} is damaged or foreign")
        return header

    def _damaged(self, block_index: int, reason: str) -> BlockCorruptError:
        return BlockCorruptError(self._session_id, block_index, reason)


def _is_damage(error: Exception) -> bool:
    """Whether it says that what was stored is not there, and not that this process cannot read."""
    return not isinstance(error, OSError) or error.errno in (errno.EIO, errno.ENOENT)
