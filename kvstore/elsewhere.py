"""A reader's way to another location: what of it stands in for what the disk could not give."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvstore.blockread import Block, BlockPlace
from kvstore.chain import ChainEnd
from kvstore.encoding import Layout
from kvstore.encoding_codec import scratch_bytes
from kvstore.errors import (
    SessionNotFoundError,
    SessionRecordCorruptError,
    SliceCorruptError,
)
from kvstore.extents import Located, unpack
from kvstore.floor import read_floor
from kvstore.format import SegmentHeader
from kvstore.location import OtherLocation, SegmentAddress, SliceAddress
from kvstore.paths import segment_path, session_folder, session_hash, still_there
from kvstore.scan import read_page
from kvstore.session import load_session
from kvstore.wholesegment import WholeSegment

logger = logging.getLogger(__name__)

_KEPT_SEGMENTS = 2
"""Where a segment is damaged from some block on, the one behind it is asked for by turns."""


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """A segment as the other location had it, its blocks by what they are looked up by."""

    address: SegmentAddress
    segment: WholeSegment
    by_hash: dict[int, Block] = field(init=False)
    by_previous_hash: dict[int, list[Block]] = field(init=False)

    def __post_init__(self) -> None:
        following: dict[int, list[Block]] = {}
        for block in self.segment.blocks:
            following.setdefault(block.header.previous_hash, []).append(block)
        object.__setattr__(self, "by_previous_hash", following)
        object.__setattr__(self, "by_hash", {b.header.hash: b for b in self.segment.blocks})


class Elsewhere:
    """One session as another location has it. Safe to use from many threads."""

    def __init__(self, root: Path, session_id: str, location: OtherLocation) -> None:
        """Ask nothing yet."""
        self._root = root
        self._session_id = session_id
        self._session_hash = session_hash(session_id)
        self._folder = session_folder(root, session_id)
        self._location = location
        self._told: set[int] = set()
        """Segments of which it was logged that slices come from elsewhere."""
        self._told_blocks: set[int] = set()
        """Segments of which it was logged that blocks do."""
        self._kept: tuple[_Found, ...] = ()
        """Segments that were found last, the newest first: block after block is asked for."""

    def look_anew(self) -> None:
        """Forget what was found: the other location may have more by now."""
        self._kept = ()

    def mend(
        self, layer: int, located: Sequence[Located], damaged: list[SliceCorruptError]
    ) -> list[SliceCorruptError]:
        """Fill what the disk could not give; return what is damaged all the same."""
        if not damaged:
            return damaged
        units = {error.unit_index for error in damaged}
        filled = {
            one[0].unit_index
            for one in located
            if one[0].unit_index in units and self._fill(layer, one)
        }
        return [error for error in damaged if error.unit_index not in filled]

    def _fill(self, layer: int, one: Located) -> bool:
        extent, (block, position) = one
        place = block.place
        data = scratch_bytes(place.layout.extent_bytes(len(extent.keys)))
        wanted = SliceAddress(
            session_id=self._session_id,
            place=place,
            unit_index=extent.unit_index,
            layer=layer,
            offset=block.extent_offset(layer, position),
            checksum=int(block.table.checksums[position, layer]),
        )
        if not self._location.slice(wanted, data):
            return False
        unpack(place.layout, data, extent)
        if place.segment_number not in self._told:
            self._told.add(place.segment_number)
            logger.warning(
                "damaged keys and values are read from another location",
                extra={
                    "session": self._session_id,
                    "unit": extent.unit_index,
                    "layer": layer,
                    "path": segment_path(self._folder, place.segment_number).name,
                },
            )
        return True

    def same_block(self, place: BlockPlace) -> Block | None:
        """The block with exactly this header, with its unit table; None: it is not there."""
        before = self._kept
        found = self._segment(place.segment_number)
        if found is not None and found in before and place.header.hash not in found.by_hash:
            self.look_anew()  # the block may have come there since, or been written anew
            found = self._segment(place.segment_number)
        block = found.by_hash.get(place.header.hash) if found else None
        if block is not None:
            self._tell_block(block)
        return block

    def next_block(self, number: int, end: ChainEnd, layout: Layout) -> Block | None:
        """The block of a segment that follows the chain's end; None: it is not there.

        Where the store's own file still says of which generation it is, it is of that one.
        """
        found = self._segment(number)
        if found is None or found.segment.header.layout != layout:
            return None
        if not is_of_generation(found.segment.header, self._own_header(number)):
            return None
        for block in found.by_previous_hash.get(end.hash, []):
            if end.admits(block.header, self._session_hash, layout):
                self._tell_block(block)
                return block
        return None

    def segment_header(self, number: int) -> SegmentHeader | None:
        """A segment's header; None: it is not there."""
        found = self._segment(number)
        return found.segment.header if found else None

    def _segment(self, number: int) -> _Found | None:
        """A segment of this session; none of what was dropped or deleted on purpose."""
        if not still_there(self._folder):
            return None
        floor = read_floor(self._folder, self._session_id, self._session_hash)
        if number < floor.first_segment:
            return None
        try:
            created_unix_s = load_session(self._root, self._session_id).created_unix_s
        except SessionNotFoundError:
            created_unix_s = None
        except SessionRecordCorruptError:
            return None  # whose it is cannot be told
        address = SegmentAddress(
            session_id=self._session_id, created_unix_s=created_unix_s, number=number
        )
        for found in self._kept:
            if found.address == address:
                return found
        segment = self._location.segment(address)
        if segment is None:
            return None
        found = _Found(address, segment)
        self._kept = (found, *self._kept[: _KEPT_SEGMENTS - 1])
        return found

    def _own_header(self, number: int) -> SegmentHeader | None:
        path = segment_path(self._folder, number)
        try:
            # Not by what is open: another generation may have taken its place.
            with open(path, "rb", buffering=0) as file:
                return SegmentHeader.unpack(read_page(file.fileno(), 0), path)
        except OSError:
            return None

    def _tell_block(self, block: Block) -> None:
        """Log that a segment's blocks come from elsewhere, at the first of them."""
        number = block.place.segment_number
        if number in self._told_blocks:
            return
        self._told_blocks.add(number)
        logger.error(
            "a segment is missing, or a header or unit table in it is damaged: "
            "blocks are read from another location",
            extra={
                "session": self._session_id,
                "block": block.header.sequence,
                "path": segment_path(self._folder, number).name,
            },
        )


def is_of_generation(found: SegmentHeader, own: SegmentHeader | None) -> bool:
    """Whether a segment from elsewhere may stand in for the store's own, as far as that tells."""
    return own is None or found.generation == own.generation
