"""How a reader learns of new blocks: it follows the chain of headers, and trusts nothing else."""

from __future__ import annotations

from pathlib import Path

from kvstore.blockread import Block, BlockPlace, TornBlockError, read_block
from kvstore.encoding import Layout
from kvstore.errors import BlockCorruptError
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.paths import segment_path, session_hash
from kvstore.scan import expected_next, read_page
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
        while len(catalog.blocks) < block_count:
            catalog.add_block(self._next_block(catalog, layout))

    def _next_block(self, catalog: UnitCatalog, layout: Layout) -> Block:
        last = catalog.blocks[-1] if catalog.blocks else None
        if last is not None:
            place = last.place
            block = self._read(place.segment_number, place.stop, last.header, layout)
            if block is not None:
                return block
        number = 0 if last is None else last.place.segment_number + 1
        self._check_segment(number, len(catalog.blocks), layout)
        block = self._read(number, PAGE_BYTES, last.header if last else None, layout)
        if block is None:
            raise self._damaged(len(catalog.blocks), "its header is damaged")
        return block

    def _read(
        self, number: int, offset: int, previous: BlockHeader | None, layout: Layout
    ) -> Block | None:
        """The block that follows `previous`, if it lies at this place."""
        path = segment_path(self._folder, number)
        with self._files.use(number) as fd:
            header = BlockHeader.unpack(read_page(fd, offset), path)
            if header is None:
                return None
            if not expected_next(header, previous, self._session_hash, layout):
                return None
            try:
                return read_block(fd, BlockPlace(header, layout, number, offset))
            except TornBlockError as error:
                raise self._damaged(header.sequence, str(error)) from error

    def _check_segment(self, number: int, block_index: int, layout: Layout) -> None:
        path = segment_path(self._folder, number)
        with self._files.use(number) as fd:
            header = SegmentHeader.unpack(read_page(fd, 0), path)
        if header is None or header.session_hash != self._session_hash:
            raise self._damaged(block_index, f"the header of {path.name} is damaged or foreign")
        if header.layout != layout or header.first_block != block_index:
            raise self._damaged(block_index, f"{path.name} does not follow the segment before it")

    def _damaged(self, block_index: int, reason: str) -> BlockCorruptError:
        return BlockCorruptError(self._session_id, block_index, reason)
