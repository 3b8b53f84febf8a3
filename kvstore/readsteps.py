"""The steps of a read behind the RAM tier: the hot tail, else the disk, else another location."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from kvstore.diskread import DiskReads, SegmentRewrittenError
from kvstore.elsewhere import Elsewhere
from kvstore.errors import SliceCorruptError, joined
from kvstore.extents import Extent
from kvstore.geometry import Tier
from kvstore.readpool import Reading, ReadPool
from kvstore.snapshot import Snapshot
from kvstore.unitplaces import UnitPlaces

logger = logging.getLogger(__name__)

_UNITS_PER_BATCH = 16
"""Read between two looks at whether the read is still wanted."""


class ReadSteps:
    """Fills extents of one session from the first place that has them. Used by many threads."""

    def __init__(
        self, session_id: str, units: UnitPlaces, disk: DiskReads, elsewhere: Elsewhere
    ) -> None:
        """Share the parts of a session's reader."""
        self._session_id = session_id
        self._units = units
        self._disk = disk
        self._elsewhere = elsewhere

    def fill(
        self,
        snapshot: Snapshot,
        layer: int,
        extents: Sequence[Extent],
        *,
        pool: ReadPool | None,
        reading: Reading | None,
    ) -> list[Tier]:
        """As `SessionReader.fill`, of units that the snapshot has."""
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
        if hot.copy_extent(extent.unit_index, layer, extent.keys, extent.values):
            return True
        if hot.still_holds(extent.unit_index):
            logger.warning(
                "unit in shared memory did not match its checksum",
                extra={"session": self._session_id, "unit": extent.unit_index, "layer": layer},
            )
        return False
