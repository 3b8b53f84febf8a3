"""The steps of a read: the RAM tier, else the hot tail, else the disk, else another location."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial

from kvstore.diskread import DiskReads, SegmentRewrittenError
from kvstore.elsewhere import Elsewhere
from kvstore.errors import SliceCorruptError, joined
from kvstore.extents import Extent, Outputs, split
from kvstore.geometry import Tier
from kvstore.ramreads import RamReads
from kvstore.readpool import Reading, ReadPool
from kvstore.snapshot import Snapshot
from kvstore.tracking import SessionTracker
from kvstore.unitplaces import UnitPlaces

logger = logging.getLogger(__name__)

_UNITS_PER_BATCH = 16
"""Read between two looks at whether the read is still wanted."""


class ReadSteps:
    """Fills arrays with units from the first place that has them. Used by many threads."""

    def __init__(
        self,
        session_id: str,
        tracker: SessionTracker,
        units: UnitPlaces,
        ram: RamReads | None,
        disk: DiskReads,
        elsewhere: Elsewhere,
    ) -> None:
        """Share the parts of a session's reader; None: there is no RAM tier to ask."""
        self._session_id = session_id
        self._units = units
        self._tracker = tracker
        self._ram = ram
        self._disk = disk
        self._elsewhere = elsewhere

    def read(
        self, snapshot: Snapshot, layer: int, unit_indices: Iterable[int], outputs: Outputs
    ) -> list[Tier]:
        """Take all steps; see `SessionReader.read` and `read_stored`."""
        units = [int(index) for index in unit_indices]
        filled = self.recall(snapshot, layer, units, outputs)
        if all(filled):
            return [Tier.RAM] * len(units)
        extents = split(snapshot, self._tracker.layout, layer, units, outputs)
        rest = [extent for extent in extents if not filled[extent.place]]
        tiers = iter(self.fill(snapshot, layer, rest))
        return [Tier.RAM if here else next(tiers) for here in filled]

    def recall(
        self,
        snapshot: Snapshot,
        layer: int,
        units: Sequence[int],
        outputs: Outputs,
        *,
        pool: ReadPool | None = None,
        reading: Reading | None = None,
    ) -> list[bool]:
        """Fill what the RAM tier has; see `kvstore.ramreads`. The rest is for `fill`."""
        if self._ram is None:
            return [False] * len(units)
        return self._ram.recall(snapshot, layer, units, outputs, pool=pool, reading=reading)

    def fill(
        self,
        snapshot: Snapshot,
        layer: int,
        extents: Sequence[Extent],
        *,
        pool: ReadPool | None = None,
        reading: Reading | None = None,
    ) -> list[Tier]:
        """Take the steps behind the RAM tier, into extents of `kvstore.extents.split`.

        Args:
            snapshot: of the session.
            layer: that is read.
            extents: of units that the snapshot has.
            pool: threads to share the work; None: the calling one does it.
            reading: says whether it is still wanted; None: to the end.

        Returns:
            Where each unit's bytes came from.

        Raises:
            ReadGivenUpError: `reading` says so. Nothing touches the arrays any more.
            KVStoreError: as for `SessionReader.read`.
        """
        if extents:
            self._units.check_index(snapshot, min(extent.unit_index for extent in extents))
        parts = [extents] if pool is None else pool.split(extents)
        tasks = [partial(self._read_part, snapshot, layer, part, reading) for part in parts]
        done = [task() for task in tasks] if pool is None else pool.run(tasks)
        damaged = [error for _, errors in done for error in errors]
        if damaged:
            raise joined(damaged)
        return [tier for tiers, _ in done for tier in tiers]

    def _read_part(
        self, snapshot: Snapshot, layer: int, extents: Sequence[Extent], reading: Reading | None
    ) -> tuple[list[Tier], list[SliceCorruptError]]:
        """Fill extents; return their tiers, and what is damaged."""
        tiers: list[Tier] = []
        damaged: list[SliceCorruptError] = []
        for start in range(0, len(extents), _UNITS_PER_BATCH):
            if reading is not None:
                reading.check()
            missing: list[Extent] = []
            for extent in extents[start : start + _UNITS_PER_BATCH]:
                hot = self._copy_hot(snapshot, layer, extent)
                tiers.append(Tier.HOT if hot else Tier.DISK)
                if not hot:
                    missing.append(extent)
            damaged += self._read_disk(snapshot, layer, missing)
        return tiers, damaged

    def _read_disk(
        self, snapshot: Snapshot, layer: int, missing: list[Extent]
    ) -> list[SliceCorruptError]:
        """Fill extents from the disk, and what it cannot give from elsewhere.

        Segments that were thinned meanwhile are met on the way.
        """
        while True:
            located, nowhere = self._units.locate_extents(snapshot, missing, layer)
            try:
                damaged = self._disk.read(layer, located)
                return nowhere + self._elsewhere.mend(layer, located, damaged)
            except SegmentRewrittenError:
                self._units.meet_rewrites()

    def _copy_hot(self, snapshot: Snapshot, layer: int, extent: Extent) -> bool:
        hot = snapshot.hot_tail
        if hot is None or not hot.still_holds(extent.unit_index):
            return False
        entry = hot.entry(extent.unit_index)
        if entry is not None and len(entry.table.cells) != len(extent.keys):
            return False  # it was thinned since
        if extent.stored is not None:
            copied = hot.copy_stored(extent.unit_index, layer, extent.stored)
        else:
            copied = hot.copy_extent(extent.unit_index, layer, extent.keys, extent.values)
        if copied:
            return True
        if hot.still_holds(extent.unit_index):
            logger.warning(
                "unit in shared memory did not match its checksum",
                extra={"session": self._session_id, "unit": extent.unit_index, "layer": layer},
            )
        return False
