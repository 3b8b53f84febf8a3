"""Where a snapshot's units lie: in which block, of which generation, and whether still as known."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from kvstore.blockread import Block, BlockPlace, TornBlockError, read_block
from kvstore.elsewhere import Elsewhere
from kvstore.errors import (
    BlockCorruptError,
    SliceCorruptError,
    SnapshotExpiredError,
    UnitDroppedError,
    UnitsThinnedError,
)
from kvstore.extents import Extent, Located
from kvstore.floor import why_gone
from kvstore.format import BlockHeader
from kvstore.paths import still_there
from kvstore.segmentfiles import SegmentFiles
from kvstore.snapshot import Snapshot
from kvstore.tablecache import TableCache
from kvstore.tracking import SessionTracker

T = TypeVar("T")


class UnitPlaces:
    """The places of a session's units, as its tracker knows them. Safe to use from many threads.

    A block's unit table was verified when the block was first met, and is not kept: what is not
    in the cache is read again, and verified by the header that was met then.
    """

    def __init__(
        self,
        session_id: str,
        tracker: SessionTracker,
        files: SegmentFiles,
        lock: threading.Lock,
        tables: TableCache,
        elsewhere: Elsewhere,
    ) -> None:
        """Share the tracker with its reader, and the tables with the process.

        Args:
            session_id: the session.
            tracker: of the reader.
            files: of the reader.
            lock: held while the tracker catches up.
            tables: where unit tables are kept.
            elsewhere: has those that are damaged here.
        """
        self.session_id = session_id
        self._tracker = tracker
        self._files = files
        self._lock = lock
        self._tables = tables
        self._elsewhere = elsewhere
        self._number = tables.number()

    def check_index(self, snapshot: Snapshot, unit_index: int) -> None:
        """Raise ValueError or UnitDroppedError unless the unit is one of the snapshot."""
        if not 0 <= unit_index < snapshot.unit_count:
            raise ValueError(f"unit must be in [0, {snapshot.unit_count}), got {unit_index}")
        if unit_index < snapshot.first_unit:
            raise UnitDroppedError(self.session_id, unit_index, snapshot.first_unit)

    def locate_extents(
        self, snapshot: Snapshot, extents: Iterable[Extent], layer: int
    ) -> tuple[list[Located], list[SliceCorruptError]]:
        """As `locate`, of units that must have as many tokens as the snapshot says.

        Returns:
            Where they are, and what is said of those that are nowhere.

        Raises:
            UnitsThinnedError: one has fewer.
            KVStoreError: as for `locate`, but SliceCorruptError.
        """
        located: list[Located] = []
        damaged: list[SliceCorruptError] = []
        block: Block | None = None
        first = stop = 0
        for extent in extents:
            unit = extent.unit_index
            if block is None or not first <= unit < stop:  # neighbours look once
                try:
                    block, position = self.locate(snapshot, unit, layer)
                except SliceCorruptError as error:
                    damaged.append(error)
                    continue
                first = unit - position
                stop = first + len(block.token_counts)
            position = unit - first
            if block.token_counts[position] != len(extent.keys):
                self.check_count(snapshot, unit, (block, position))
            located.append((extent, (block, position)))
        return located, damaged

    def check_count(self, snapshot: Snapshot, unit_index: int, located: tuple[Block, int]) -> None:
        """Raise UnitsThinnedError, with all that the snapshot does not know, where it is old.

        Tokens only ever go, so a unit with as many is the same unit.
        """
        block, position = located
        if block.token_counts[position] == snapshot.token_counts[unit_index]:
            return
        catalog = self._tracker.catalog
        count = min(snapshot.unit_count, catalog.durable_unit_count)
        now = catalog.token_counts(count)
        changed = np.flatnonzero((now != snapshot.token_counts[:count]) & (now > 0))
        raise UnitsThinnedError(
            self.session_id, tuple(changed.tolist()), tuple(now[changed].tolist())
        )

    def locate(self, snapshot: Snapshot, unit_index: int, layer: int) -> tuple[Block, int]:
        """The block of a unit of the snapshot, which is not (any more) in shared memory.

        Returns:
            The block, and the unit's position in it.

        Raises:
            SliceCorruptError, SnapshotExpiredError, UnitDroppedError: there is none.
            BlockCorruptError: its unit table is damaged.
            SessionNotFoundError: the segment is gone with its session.
        """
        found = self._find(unit_index)
        if found is None:
            with self._lock:
                self._tracker.refresh()
            found = self._find(unit_index)
        if found is None:
            first_unit = self._tracker.catalog.floor.first_unit
            if unit_index < first_unit:
                raise UnitDroppedError(self.session_id, unit_index, first_unit)
            if snapshot.hot_tail and snapshot.hot_tail.still_holds(unit_index):
                raise SliceCorruptError(self.session_id, None, unit_index, layer)
        # A later epoch's block holds another unit: the one of this snapshot was never durable.
        if found is None or found[0].header.epoch > snapshot.epoch:
            raise SnapshotExpiredError(self.session_id, unit_index, snapshot.epoch)
        return found

    def _find(self, unit_index: int) -> tuple[Block, int] | None:
        """A unit's block, of the generation that is known now; None when it is not durable."""
        while True:
            places = self._tracker.catalog.places
            found = places.find(unit_index)
            if found is None:
                return None
            index, position, header_hash = found
            key = (self._number, header_hash)
            block = self._tables.get(key)
            if block is None:
                block = self._read_table(places[index])
                if block is None:
                    continue
                self._tables.put(key, block)
            return block, position

    def _read_table(self, place: BlockPlace) -> Block | None:
        """Read a block's unit table; None when what is known of the block is out of date."""
        number, header = place.segment_number, place.header
        try:
            with self._files.use(number) as fd:
                return read_block(fd, place)
        except (TornBlockError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EIO, errno.ENOENT):
                raise
            if isinstance(error, FileNotFoundError):
                self._check_not_dropped(header, error)
            # What bears the name may be another file by now, or be put there to heal this one.
            self._files.forget_one(number)
            self.meet_rewrites()
            if not self._is_known(header):
                return None
            block = self._elsewhere.same_block(place)
            if block is None:
                reason = (
                    "its segment is missing" if isinstance(error, FileNotFoundError) else str(error)
                )
                raise BlockCorruptError(self.session_id, header.sequence, reason) from error
            return block

    def _check_not_dropped(self, header: BlockHeader, error: FileNotFoundError) -> None:
        """Raise where a block was dropped on purpose, or its session was; else it is missing."""
        gone = why_gone(self._tracker.folder, self.session_id, header.first_unit)
        if isinstance(gone, UnitDroppedError) or not still_there(self._tracker.folder):
            raise gone from error

    def _is_known(self, header: BlockHeader) -> bool:
        """Whether the block of these units is still the one with this header."""
        found = self._tracker.catalog.places.find(header.first_unit)
        return found is not None and found[2] == header.hash

    def meet_rewrites(self) -> None:
        """Read anew what was thinned since its blocks were read."""
        with self._lock:
            self._tracker.meet_rewrites()

    def read_part(self, block: Block, read: Callable[[int, Block], T]) -> T:
        """Read something of a block, of its latest generation.

        Raises:
            BlockCorruptError: it does not match its checksum.
            UnitDroppedError, SessionNotFoundError: the segment is gone.
        """
        first_unit, sequence = block.header.first_unit, block.header.sequence
        while True:
            try:
                with self._files.use(block.place.segment_number) as fd:
                    return read(fd, block)
            except TornBlockError as error:
                self.meet_rewrites()
                found = None if self._is_known(block.header) else self._find(first_unit)
                if found is None:
                    raise BlockCorruptError(self.session_id, sequence, str(error)) from error
                block = found[0]
            except FileNotFoundError as error:
                raise why_gone(self._tracker.folder, self.session_id, first_unit) from error

    def close(self) -> None:
        """Let go of the session's tables. No other call may be running or follow."""
        self._tables.forget(self._number)
