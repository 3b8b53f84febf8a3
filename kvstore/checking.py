"""Reading everything that one session holds and naming all that is damaged, block after block.

Changes nothing and goes on behind damage. What no header and no CTL page proves to have been
acknowledged is a torn or unfinished tail, not damage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvstore.blockread import (
    BlockPlace,
    TornBlockError,
    faults_by_layer,
    read_block,
    read_resume,
    read_thumbnail,
)
from kvstore.control import ControlPage
from kvstore.encoding import Layout
from kvstore.errors import KVStoreError
from kvstore.floor import read_floor
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.paths import (
    RECORD_NAME,
    segment_numbers,
    segment_path,
    session_hash,
    sessions_folder,
)
from kvstore.scan import read_page
from kvstore.session import load_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is not as it was written."""

    session_id: str
    reason: str
    block_index: int | None = None
    unit_index: int | None = None
    layer_index: int | None = None


class SessionCheck:
    """One reading of one session. `block_index` says where it is."""

    def __init__(
        self,
        root: Path,
        session_id: str,
        *,
        on_read: Callable[[int], None],
        on_damage: Callable[[Damage], None],
    ) -> None:
        """Prepare to read.

        Args:
            on_read: called with bytes as they are read, slice by slice; may wait.
            on_damage: called with each damage as soon as it is certain to be one.
        """
        self._root = root
        self._session_id = session_id
        self._session_hash = session_hash(session_id)
        self._folder = sessions_folder(root) / session_id
        self._on_read = on_read
        self._on_damage = on_damage
        self._chain: tuple[int, int] | None = None
        """(hash, epoch) that the next header must follow; None behind damage."""
        self._proven = 0
        self._suspects: list[Damage] = []
        self.block_index = 0
        """The next block's number."""
        self.block_count = 0
        self.unit_count = 0

    def run(self) -> None:
        """Check the record and every acknowledged block.

        Raises:
            FileNotFoundError: the session went away meanwhile.
        """
        self._guarded(self._check_record)
        self._guarded(self._take_floor)
        for number in segment_numbers(self._folder):
            self._guarded(lambda number=number: self._check_file(number))  # type: ignore[misc]
        self._guarded(self._check_end)
        self._tell_proven()

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take a step; an error of the store is damage, and the next step is taken."""
        try:
            step()
        except KVStoreError as error:
            self._on_damage(Damage(session_id=self._session_id, reason=str(error)))

    def _check_record(self) -> None:
        if (self._folder / RECORD_NAME).exists():
            load_session(self._root, self._session_id)

    def _take_floor(self) -> None:
        control = ControlPage.open(self._folder, self._session_hash)
        if control is not None:
            self._proven = control.proven_block_count()
            control.close()
        floor = read_floor(self._folder, self._session_id, self._session_hash)
        self.block_index = floor.first_block
        self._chain = (floor.previous_hash, 0)

    def _check_end(self) -> None:
        """See that no acknowledged block is missing, unless it was dropped since the start."""
        floor = read_floor(self._folder, self._session_id, self._session_hash)
        if self._proven > max(self.block_index, floor.first_block):
            self._suspect("acknowledged, but not there")

    def _suspect(self, reason: str, unit: int | None = None, layer: int | None = None) -> None:
        found = Damage(
            session_id=self._session_id,
            reason=reason,
            block_index=self.block_index,
            unit_index=unit,
            layer_index=layer,
        )
        self._suspects.append(found)
        self._tell_proven()

    def _tell_proven(self) -> None:
        """Tell the suspects that are damage by now: a later header says they were acknowledged."""
        certain = [found for found in self._suspects if (found.block_index or 0) < self._proven]
        for found in certain:
            self._suspects.remove(found)
            self._on_damage(found)

    def _prove(self, block_count: int) -> None:
        if block_count > self._proven:
            self._proven = block_count
            self._tell_proven()

    def _check_file(self, number: int) -> None:
        path = segment_path(self._folder, number)
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed below, where reading it may fail
        except FileNotFoundError:
            floor = read_floor(self._folder, self._session_id, self._session_hash)
            if number < floor.first_segment:
                return  # dropped meanwhile
            raise
        with file:
            try:
                self._check_segment(file.fileno(), path, number)
            except OSError as error:
                self._suspect(f"{path.name} cannot be read: {error.strerror}")
                self._chain = None

    def _check_segment(self, fd: int, path: Path, number: int) -> None:
        segment = SegmentHeader.unpack(read_page(fd, 0), path)
        if segment is not None and segment.session_hash != self._session_hash:
            reason = f"{path.name} belongs to session {segment.session_id!r}"
            self._on_damage(Damage(session_id=self._session_id, reason=reason))
            return
        if segment is None:
            self._suspect(f"the header of {path.name} is damaged")
            self._chain = None
            return
        self._prove(segment.first_block)
        if segment.first_block < self.block_index and self.block_count == 0:
            return  # below the floor: what a crash in the middle of dropping left
        if segment.first_block > self.block_index:
            if not self._dropped_up_to(number):
                self._suspect(f"missing before {path.name}")
            self._chain, self.block_index = None, segment.first_block
        self._check_blocks(fd, path, segment, number)
        if segment.chain_end_hash and self._chain is not None:
            self._chain = (segment.chain_end_hash, self._chain[1])

    def _is_late(self, header: BlockHeader, number: int) -> bool:
        """Whether a block was written after a later epoch had begun in the next segment: void."""
        path = segment_path(self._folder, number + 1)
        try:
            with open(path, "rb") as file:
                following = SegmentHeader.unpack(read_page(file.fileno(), 0), path)
        except FileNotFoundError:
            return False
        return (
            following is not None
            and following.session_hash == self._session_hash
            and header.sequence >= following.first_block
            and header.epoch < following.epoch
        )

    def _dropped_up_to(self, number: int) -> bool:
        """Whether everything before a segment was dropped since the check began."""
        floor = read_floor(self._folder, self._session_id, self._session_hash)
        return floor.first_segment >= number

    def _check_blocks(self, fd: int, path: Path, segment: SegmentHeader, number: int) -> None:
        offset = PAGE_BYTES
        size = os.fstat(fd).st_size
        damaged_here = False
        while offset < size:
            page = read_page(fd, offset)
            header = BlockHeader.unpack(page, path)
            if header is not None and header.session_hash == self._session_hash:
                if self._is_late(header, number):
                    offset += header.span_bytes(segment.layout)
                    continue
                offset = self._check_block(fd, header, segment.layout, number, offset)
                damaged_here = False
                continue
            if any(page) and not damaged_here:
                self._suspect("its header is damaged")
                self._chain, damaged_here = None, True
            self._on_read(PAGE_BYTES)
            offset += PAGE_BYTES

    def _check_block(
        self, fd: int, header: BlockHeader, layout: Layout, number: int, offset: int
    ) -> int:
        """Check a block with an intact header and return where it stops."""
        place = BlockPlace(header, layout, number, offset)
        self._prove(header.durable_block_count)
        if self._chain is not None:
            hash_, epoch = self._chain
            in_order = header.sequence == self.block_index and header.epoch >= epoch
            if not (in_order and header.previous_hash == hash_):
                self._suspect("what follows does not belong behind the block before it")
        self.block_index = header.sequence
        try:
            self._check_content(fd, place)
        except OSError as error:
            self._suspect(f"it cannot be read: {error.strerror}")
        self.block_count += 1
        self.unit_count += header.unit_count
        self.block_index = header.sequence + 1
        self._chain = (header.hash, header.epoch)
        return place.stop

    def _check_content(self, fd: int, place: BlockPlace) -> None:
        header, read_bytes = place.header, 0
        try:
            block = read_block(fd, place)
            for position in range(header.unit_count):
                read_thumbnail(fd, block, position)
            read_resume(fd, place)
            for layer, layer_bytes, positions in faults_by_layer(fd, block):
                for position in positions:
                    unit = header.first_unit + position
                    self._suspect("keys and values do not match their checksum", unit, layer)
                read_bytes += layer_bytes
                self._on_read(layer_bytes)
        except TornBlockError as error:
            self._suspect(str(error))
        self._on_read(place.stop - place.offset - read_bytes)
