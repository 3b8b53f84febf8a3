"""Where a snapshot's units lie: in which block, of which generation, and whether still as known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from kvstore.blockread import Block, TornBlockError
from kvstore.errors import (
    BlockCorruptError,
    SliceCorruptError,
    SnapshotExpiredError,
    UnitDroppedError,
    UnitsThinnedError,
)
from kvstore.extents import Extent
from kvstore.floor import why_gone
from kvstore.segmentfiles import SegmentFiles
from kvstore.snapshot import Snapshot
from kvstore.tracking import SessionTracker

T = TypeVar("T")


class UnitPlaces:
    """The places of a session's units, as its tracker knows them. Safe to use from many threads."""

    def __init__(
        self, session_id: str, tracker: SessionTracker, files: SegmentFiles, lock: threading.Lock
    ) -> None:
        """Share the tracker with its reader; `lock` is held while it catches up."""
        self.session_id = session_id
        self._tracker = tracker
        self._files = files
        self._lock = lock

    def check_index(self, snapshot: Snapshot, unit_index: int) -> None:
        """Raise ValueError or UnitDroppedError unless the unit is one of the snapshot."""
        if not 0 <= unit_index < snapshot.unit_count:
            raise ValueError(f"unit must be in [0, {snapshot.unit_count}), got {unit_index}")
        if unit_index < snapshot.first_unit:
            raise UnitDroppedError(self.session_id, unit_index, snapshot.first_unit)

    def locate_extent(self, snapshot: Snapshot, extent: Extent, layer: int) -> tuple[Block, int]:
        """As `locate`, of a unit that must have as many tokens as the snapshot says.

        Raises:
            UnitsThinnedError: it has fewer.
            KVStoreError: as for `locate`.
        """
        located = self.locate(snapshot, extent.unit_index, layer)
        self.check_count(snapshot, extent.unit_index, located)
        return located

    def check_count(self, snapshot: Snapshot, unit_index: int, located: tuple[Block, int]) -> None:
        """Raise UnitsThinnedError, with all that the snapshot does not know, where it is old.

        Tokens only ever go, so a unit with as many is the same unit.
        """
        block, position = located
        if int(block.table.rows["token_count"][position]) == snapshot.token_counts[unit_index]:
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
        """
        found = self._tracker.catalog.find(unit_index)
        if found is None:
            with self._lock:
                self._tracker.refresh()
            found = self._tracker.catalog.find(unit_index)
        floor = self._tracker.catalog.floor
        if found is None and unit_index < floor.first_unit:
            raise UnitDroppedError(self.session_id, unit_index, floor.first_unit)
        if found is None and snapshot.hot_tail and snapshot.hot_tail.still_holds(unit_index):
            raise SliceCorruptError(self.session_id, None, unit_index, layer)
        # A later epoch's block holds another unit: the one of this snapshot was never durable.
        if found is None or found[0].header.epoch > snapshot.epoch:
            raise SnapshotExpiredError(self.session_id, unit_index, snapshot.epoch)
        return found

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
                found = self._tracker.catalog.find(first_unit)
                if found is None or found[0] is block:
                    raise BlockCorruptError(self.session_id, sequence, str(error)) from error
                block = found[0]
            except FileNotFoundError as error:
                raise why_gone(self._tracker.folder, self.session_id, first_unit) from error
