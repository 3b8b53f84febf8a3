"""Reading a session from any process and any thread, without writing a byte."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.blockread import Block, BlockPlace, TornBlockError, read_thumbnail
from kvstore.control import Watermarks
from kvstore.directio import DiskMode
from kvstore.diskread import DiskReads
from kvstore.encoding import Encoding
from kvstore.errors import (
    BlockCorruptError,
    SessionNotFoundError,
    SliceCorruptError,
    SnapshotExpiredError,
    UnitDroppedError,
    joined,
)
from kvstore.extents import Extent, Located, check_outputs
from kvstore.floor import why_gone
from kvstore.geometry import Geometry, Tier
from kvstore.paths import TOMBSTONE_NAME, session_folder, session_hash
from kvstore.quarantine import Quarantine
from kvstore.ramtier import RamTier, Wanted
from kvstore.readpool import Reading, ReadPool
from kvstore.segmentfiles import SegmentFiles
from kvstore.snapshot import Snapshot
from kvstore.tracking import SessionTracker

logger = logging.getLogger(__name__)

_UNITS_PER_BATCH = 16
"""Read between two looks at whether the read is still wanted."""


class SessionReader:
    """Reads one session. Safe to use from many threads; holds a bounded number of descriptors."""

    def __init__(
        self,
        session_id: str,
        tracker: SessionTracker,
        files: SegmentFiles,
        disk: DiskReads,
        ram: RamTier | None,
    ) -> None:
        """Internal: use `open`."""
        self.session_id = session_id
        self._hash = session_hash(session_id)
        self._tracker = tracker
        self._files = files
        self._disk = disk
        self._ram = ram
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        root: Path,
        session_id: str,
        *,
        quarantine: Quarantine | None = None,
        ram: RamTier | None = None,
        disk_io: DiskMode = "auto",
    ) -> SessionReader:
        """Open a session that exists, whether or not a writer is at work.

        Args:
            root: of the store.
            session_id: the session.
            quarantine: of this session: where damage that is found is remembered. None: nowhere.
            ram: what is asked before the disk. None: nothing.
            disk_io: whether slices that are not in the page cache are read past it.

        Raises:
            SessionNotFoundError: there is no such session, or it is being deleted.
            BlockCorruptError: a durable block's header or unit table is damaged.
        """
        folder = session_folder(root, session_id)
        if not folder.is_dir() or (folder / TOMBSTONE_NAME).exists():
            raise SessionNotFoundError(session_id)
        files = SegmentFiles(folder, disk_io)
        disk = DiskReads(session_id, folder, files, quarantine)
        reader = cls(session_id, SessionTracker(folder, session_id, files), files, disk, ram)
        try:
            reader.snapshot()
        except BaseException:
            reader.close()
            raise
        return reader

    @property
    def geometry(self) -> Geometry | None:
        """Shape of the keys and values; None until a writer was there."""
        layout = self._tracker.layout
        return layout.geometry if layout else None

    @property
    def encoding(self) -> Encoding | None:
        """How they are stored; None until a writer was there."""
        layout = self._tracker.layout
        return layout.encoding if layout else None

    @property
    def places(self) -> list[BlockPlace]:
        """Where the durable blocks known to the last snapshot lie, in order."""
        return [block.place for block in self._tracker.catalog.blocks]

    def snapshot(self) -> Snapshot:
        """The units that are visible now. Without news this costs a look at the CTL page.

        When the writer's shared memory cannot be reached (another container, a machine that was
        started anew), only durable units are visible, and a warning is logged.

        Raises:
            SessionNotFoundError: the session was deleted.
            BlockCorruptError: a new durable block is damaged.
            HotTailCorruptError: a new visible unit is damaged in shared memory.
        """
        latest = self._tracker.unchanged()
        if latest is not None:
            return latest
        with self._lock:
            return self._tracker.refresh()

    @property
    def writer_open(self) -> bool:
        """Whether a writer has the session; also true of one that was killed."""
        return self._tracker.writer_open

    def watermarks(self) -> Watermarks:
        """What has been received and what is settled, now.

        Take it before a snapshot of the same epoch: that one then holds all that is settled. Not
        known (None) when no writer was there since the machine started.
        """
        return self._tracker.watermarks()

    def read(
        self,
        snapshot: Snapshot,
        layer: int,
        unit_indices: Iterable[int],
        keys_out: np.ndarray[Any, Any],
        values_out: np.ndarray[Any, Any],
    ) -> list[Tier]:
        """Fill `keys_out` and `values_out` with units of one layer, in the order given.

        Every unit is checked against the XXH3-64 that was taken when it was appended; one from the
        RAM tier was, when it came there.

        Args:
            keys_out, values_out: C-contiguous (sum of the units' token counts, kv_head_count,
                head_dim) of the geometry's storage dtype.

        Returns:
            Where each unit's bytes came from.

        Raises:
            ValueError: an index or a shape is outside what the snapshot has.
            SliceCorruptError: bytes are not those that were written, or the disk failed; its
                `damaged` holds every unit of which that is true, and what is in the arrays counts
                for nothing.
            SnapshotExpiredError: a unit was never durable and its writer is gone.
            UnitDroppedError: a unit was dropped, before the snapshot or since.
            SessionNotFoundError: the session was deleted and its files are not open here.
        """
        units = [int(index) for index in unit_indices]
        filled = self.recall(snapshot, layer, units, keys_out, values_out)
        if all(filled):
            return [Tier.RAM] * len(units)
        extents = check_outputs(snapshot, self.geometry, layer, units, keys_out, values_out)
        rest = [extent for extent in extents if not filled[extent.place]]
        tiers = iter(self.fill(snapshot, layer, rest))
        return [Tier.RAM if here else next(tiers) for here in filled]

    def recall(
        self,
        snapshot: Snapshot,
        layer: int,
        units: Sequence[int],
        keys_out: np.ndarray[Any, Any],
        values_out: np.ndarray[Any, Any],
        *,
        pool: ReadPool | None = None,
        reading: Reading | None = None,
    ) -> list[bool]:
        """Fill what the RAM tier has; say of each unit whether it did. The rest is for `fill`.

        What `check_outputs` would refuse is left to it: nothing is filled then.

        Args:
            pool: threads to share the work; None: the calling one does it.
            reading: says whether it is still wanted; None: to the end.

        Raises:
            ReadGivenUpError: `reading` says so. Nothing touches the arrays any more.
        """
        nothing = [False] * len(units)
        layout, catalog = self._tracker.layout, self._tracker.catalog
        if self._ram is None or layout is None or not units:
            return nothing
        indices = np.array(units, np.int64)
        first_unit = max(snapshot.first_unit, catalog.floor.first_unit)
        if indices.min() < first_unit or indices.max() >= snapshot.unit_count:
            return nothing
        counts = snapshot.token_counts[indices]
        stops = np.cumsum(counts)
        if not _fits(layout.geometry, layer, int(stops[-1]), keys_out, values_out):
            return nothing
        # What was durable then is of the same bytes in every later epoch.
        known = indices < min(snapshot.durable_unit_count, catalog.durable_unit_count)
        if snapshot.hot_tail is not None:
            known &= indices < snapshot.hot_tail.floor
        if not known.any():
            return nothing
        wanted = Wanted(
            layer=layer,
            layout=layout,
            units=indices.astype(np.uint64),
            checksums=catalog.checksums(indices, layer),
            starts=stops - counts,
            token_counts=counts,
            keys=keys_out,
            values=values_out,
        )
        filled = self._ram.fill(self._hash, wanted, pool=pool, reading=reading)
        here: list[bool] = (filled & known).tolist()
        return here

    def fill(
        self,
        snapshot: Snapshot,
        layer: int,
        extents: Sequence[Extent],
        *,
        pool: ReadPool | None = None,
        reading: Reading | None = None,
    ) -> list[Tier]:
        """Read units as `read` does, but not from the RAM tier, into extents of `check_outputs`.

        Args:
            pool: threads to share the work; None: the calling one does it.
            reading: says whether it is still wanted; None: to the end.

        Raises:
            ReadGivenUpError: `reading` says so. Nothing touches the arrays any more.
            KVStoreError: as for `read`.
        """
        if extents:
            self._check_index(snapshot, min(extent.unit_index for extent in extents))
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
            missing: list[Located] = []
            for extent in extents[start : start + _UNITS_PER_BATCH]:
                hot = self._copy_hot(snapshot, layer, extent)
                tiers.append(Tier.HOT if hot else Tier.DISK)
                if hot:
                    continue
                try:
                    located = self._locate(snapshot, extent.unit_index, layer)
                except SliceCorruptError as error:
                    damaged.append(error)
                else:
                    missing.append((extent, located))
            damaged += self._disk.read(layer, missing)
        return tiers, damaged

    def stored_slice(
        self, snapshot: Snapshot, unit_index: int, layer: int
    ) -> tuple[np.ndarray[Any, Any], int] | None:
        """The (bytes,) uint8 of a durable unit's keys and values as they are stored, unverified.

        Returns:
            The bytes and the XXH3-64 that they are to have; None when the unit is not durable, was
            dropped, or ends before its length.

        Raises:
            FileNotFoundError: the segment was dropped.
            OSError: the disk failed.
        """
        located = self._tracker.catalog.find(unit_index)
        if located is None or unit_index >= snapshot.durable_unit_count:
            return None
        block, position = located
        starts = block.table.token_starts
        token_count = int(starts[position + 1] - starts[position])
        data = np.empty(block.place.layout.extent_bytes(token_count), np.uint8)
        with self._files.use(block.place.segment_number) as fd:
            read_bytes = os.preadv(fd, [data.data], block.extent_offset(layer, position))
        checksum = int(block.table.checksums[position, layer])
        return (data, checksum) if read_bytes == len(data) else None

    def cells(self, snapshot: Snapshot, unit_index: int) -> np.ndarray[Any, Any]:
        """Row and column of each kept token of a unit: (token_count, 2) uint16, read-only.

        Raises:
            ValueError, SnapshotExpiredError, UnitDroppedError: as for `read`.
            SessionNotFoundError: too.
        """
        self._check_index(snapshot, unit_index)
        entry = snapshot.hot_tail.entry(unit_index) if snapshot.hot_tail else None
        if entry is not None:
            return entry.table.cells
        block, position = self._locate(snapshot, unit_index, 0)
        starts = block.table.token_starts
        return block.table.cells[int(starts[position]) : int(starts[position + 1])]

    def thumbnail(self, snapshot: Snapshot, unit_index: int) -> bytes:
        """The JPEG of the unit's first frame; empty when none was stored.

        Raises:
            BlockCorruptError: it is damaged.
            ValueError, SnapshotExpiredError, UnitDroppedError: as for `read`.
            SessionNotFoundError: too.
        """
        self._check_index(snapshot, unit_index)
        data = snapshot.hot_tail.thumbnail(unit_index) if snapshot.hot_tail else None
        if data is not None:
            return data
        block, position = self._locate(snapshot, unit_index, 0)
        try:
            with self._files.use(block.place.segment_number) as fd:
                return read_thumbnail(fd, block, position)
        except TornBlockError as error:
            raise BlockCorruptError(self.session_id, block.header.sequence, str(error)) from error
        except FileNotFoundError as error:
            raise why_gone(self._tracker.folder, self.session_id, unit_index) from error

    def close(self) -> None:
        """Close the files and mappings. No other call may be running or follow."""
        self._files.close()
        self._tracker.close()

    def _check_index(self, snapshot: Snapshot, unit_index: int) -> None:
        if not 0 <= unit_index < snapshot.unit_count:
            raise ValueError(f"unit must be in [0, {snapshot.unit_count}), got {unit_index}")
        if unit_index < snapshot.first_unit:
            raise UnitDroppedError(self.session_id, unit_index, snapshot.first_unit)

    def _copy_hot(self, snapshot: Snapshot, layer: int, extent: Extent) -> bool:
        hot = snapshot.hot_tail
        if hot is None or not hot.still_holds(extent.unit_index):
            return False
        if hot.copy_extent(extent.unit_index, layer, extent.keys, extent.values):
            return True
        if hot.still_holds(extent.unit_index):
            logger.warning(
                "unit in shared memory did not match its checksum",
                extra={"session": self.session_id, "unit": extent.unit_index, "layer": layer},
            )
        return False

    def _locate(self, snapshot: Snapshot, unit_index: int, layer: int) -> tuple[Block, int]:
        """The block of a unit of the snapshot, which is not (any more) in shared memory."""
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


def _fits(
    geometry: Geometry,
    layer: int,
    token_count: int,
    keys: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
) -> bool:
    """Whether the caller's arrays are what `kvstore.extents.check_outputs` accepts."""
    shape = (token_count, geometry.kv_head_count, geometry.head_dim)
    return 0 <= layer < geometry.layer_count and all(
        array.shape == shape
        and array.dtype == geometry.storage_dtype
        and array.flags.c_contiguous
        and array.flags.writeable
        for array in (keys, values)
    )
