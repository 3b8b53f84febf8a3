"""Reading a session from any process and any thread, without writing a byte."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.blockread import BlockPlace, read_slice, read_thumbnail
from kvstore.control import Watermarks
from kvstore.directio import DiskMode
from kvstore.diskread import DiskReads
from kvstore.elsewhere import Elsewhere
from kvstore.encoding import Encoding, Layout
from kvstore.errors import SessionNotFoundError
from kvstore.filepool import FilePool
from kvstore.geometry import Geometry, Tier
from kvstore.location import NOWHERE, OtherLocation
from kvstore.paths import TOMBSTONE_NAME, session_folder
from kvstore.quarantine import Quarantine
from kvstore.ramreads import RamReads
from kvstore.ramtier import RamTier
from kvstore.readsteps import ReadSteps
from kvstore.segmentfiles import PROCESS_FILES, OpenFile, SegmentFiles
from kvstore.snapshot import Snapshot
from kvstore.tablecache import PROCESS_TABLES, TableCache
from kvstore.thinblock import read_mean_keys
from kvstore.tracking import SessionTracker
from kvstore.unitplaces import UnitPlaces


class SessionReader:
    """Reads one session. Safe to use from many threads."""

    def __init__(
        self,
        session_id: str,
        tracker: SessionTracker,
        files: SegmentFiles,
        disk: DiskReads,
        ram: RamReads | None,
        tables: TableCache,
        elsewhere: Elsewhere,
    ) -> None:
        """Internal: use `open`."""
        self.session_id = session_id
        self._tracker = tracker
        self._files = files
        self._lock = threading.Lock()
        self._units = UnitPlaces(session_id, tracker, files, self._lock, tables, elsewhere)
        self.steps = ReadSteps(session_id, tracker, self._units, ram, disk, elsewhere)
        """What `read` does, one after the other, for those who share the work out."""

    @classmethod
    def open(
        cls,
        root: Path,
        session_id: str,
        *,
        quarantine: Quarantine | None = None,
        ram: RamTier | None = None,
        disk_io: DiskMode = "auto",
        tables: TableCache = PROCESS_TABLES,
        open_files: FilePool[OpenFile] = PROCESS_FILES,
        location: OtherLocation = NOWHERE,
    ) -> SessionReader:
        """Open a session that exists, whether or not a writer is at work.

        Args:
            root: of the store.
            session_id: the session.
            quarantine: of this session: where damage that is found is remembered. None: nowhere.
            ram: what is asked before the disk. None: nothing.
            disk_io: whether slices that are not in the page cache are read past it.
            tables: where unit tables are kept between reads.
            open_files: where segment files stay open between reads.
            location: what is asked for what the disk cannot give.

        Raises:
            SessionNotFoundError: there is no such session, or it is being deleted.
            BlockCorruptError: a durable block's header or unit table is damaged.
        """
        folder = session_folder(root, session_id)
        if not folder.is_dir() or (folder / TOMBSTONE_NAME).exists():
            raise SessionNotFoundError(session_id)
        files = SegmentFiles(folder, disk_io, open_files)
        disk = DiskReads(session_id, folder, files, quarantine)
        elsewhere = Elsewhere(root, session_id, location)
        tracker = SessionTracker(
            folder, session_id, files, elsewhere, keeps_checksums=ram is not None
        )
        recalled = RamReads(session_id, tracker, ram) if ram is not None else None
        reader = cls(session_id, tracker, files, disk, recalled, tables, elsewhere)
        try:
            reader.snapshot()
        except BaseException:
            reader.close()
            raise
        return reader

    @property
    def layout(self) -> Layout | None:
        """Shape and encoding of what is stored; None until a writer was there."""
        return self._tracker.layout

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
        return list(self._tracker.catalog.places)

    def snapshot(self) -> Snapshot:
        """The units that are visible now. Without news this costs a look at the CTL page.

        When the writer's shared memory cannot be reached (another container, a machine that was
        started anew), only durable units are visible, and a warning is logged.

        Raises:
            SessionNotFoundError: the session was deleted.
            BlockCorruptError: a new durable block is damaged.
            HotTailCorruptError: a new visible unit is damaged in shared memory.
            ControlCorruptError: the CTL page is damaged beyond healing.
        """
        latest = self._tracker.unchanged()
        if latest is not None:
            return latest
        with self._lock:
            return self._tracker.refresh()

    def look_again(self) -> Snapshot:
        """The units that are visible now, also to a reader on another machine than the writer.

        There the CTL page's mapping may stand still, and only the files tell: this reads all
        headers and unit tables. Durable units only. Where the page is of this machine it costs no
        more than `snapshot`.

        Raises:
            As `snapshot`.
        """
        if self._tracker.is_of_this_boot:
            return self.snapshot()
        with self._lock:
            return self._tracker.look_again()

    def known(self) -> Snapshot:
        """The units that were visible when the session was looked at last; looks at nothing."""
        return self._tracker.known() or self.snapshot()

    @property
    def writer_is_here(self) -> bool:
        """Whether the last writer was a process of this machine, since its start."""
        return self._tracker.is_of_this_boot

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
            BlockCorruptError: a block's unit table was damaged since the block was met.
            SnapshotExpiredError: a unit was never durable and its writer is gone.
            UnitDroppedError: a unit was dropped, before the snapshot or since.
            UnitsThinnedError: units lost tokens since the snapshot; what is in the arrays counts
                for nothing. Go on with `snapshot.thinned`.
            SessionNotFoundError: the session was deleted and its files are not open here.
        """
        return self.steps.read(snapshot, layer, unit_indices, (keys_out, values_out))

    def read_stored(
        self,
        snapshot: Snapshot,
        layer: int,
        unit_indices: Iterable[int],
        out: np.ndarray[Any, Any],
    ) -> list[Tier]:
        """Fill `out` with quantised units of one layer as they are stored, one after the other.

        They are checked as `read` checks them, and are for whoever decodes them elsewhere: see
        `kvstore.encoding_codec` for what they mean.

        Args:
            out: (layout.extent_bytes(sum of the units' token counts, units),) uint8, contiguous.

        Returns:
            Where each unit's bytes came from.

        Raises:
            ValueError: as `read`, and where units are not stored quantised.
            KVStoreError: as `read`.
        """
        return self.steps.read(snapshot, layer, unit_indices, (out,))

    def stored_slice(
        self, snapshot: Snapshot, unit_index: int, layer: int
    ) -> tuple[np.ndarray[Any, Any], int] | None:
        """The (bytes,) uint8 of a durable unit's keys and values as they are stored now.

        Returns:
            The bytes and their XXH3-64; None when the unit is not durable.

        Raises:
            BlockCorruptError: they are not those that were written.
            UnitDroppedError, SnapshotExpiredError, SessionNotFoundError: as for `read`.
            OSError: the disk failed.
        """
        if unit_index >= snapshot.durable_unit_count:
            return None
        block, position = self._units.locate(snapshot, unit_index, layer)
        return self._units.read_part(
            block, lambda fd, block: read_slice(fd, block, layer, position)
        )

    def stored_checksum(self, snapshot: Snapshot, unit_index: int, layer: int) -> int | None:
        """The XXH3-64 of what `stored_slice` returns, without reading it.

        Raises:
            UnitDroppedError, SnapshotExpiredError, SessionNotFoundError: as for `read`.
        """
        if unit_index >= snapshot.durable_unit_count:
            return None
        block, position = self._units.locate(snapshot, unit_index, layer)
        return int(block.table.checksums[position, layer])

    def cells(self, snapshot: Snapshot, unit_index: int) -> np.ndarray[Any, Any]:
        """Row and column of each kept token of a unit: (token_count, 2) uint16, read-only.

        Raises:
            ValueError, SnapshotExpiredError, UnitDroppedError: as for `read`.
            UnitsThinnedError, BlockCorruptError, SessionNotFoundError: too.
        """
        self._units.check_index(snapshot, unit_index)
        entry = snapshot.hot_tail.entry(unit_index) if snapshot.hot_tail else None
        if entry is not None and len(entry.table.cells) == int(snapshot.token_counts[unit_index]):
            return entry.table.cells
        block, position = self._units.locate(snapshot, unit_index, 0)
        self._units.check_count(snapshot, unit_index, (block, position))
        starts = block.table.token_starts
        return block.table.cells[int(starts[position]) : int(starts[position + 1])]

    def thumbnail(self, snapshot: Snapshot, unit_index: int) -> bytes:
        """The JPEG of the unit's first frame; empty when none was stored.

        Raises:
            BlockCorruptError: it is damaged.
            ValueError, SnapshotExpiredError, UnitDroppedError: as for `read`.
            SessionNotFoundError: too.
        """
        self._units.check_index(snapshot, unit_index)
        data = snapshot.hot_tail.thumbnail(unit_index) if snapshot.hot_tail else None
        if data is not None:
            return data
        block, position = self._units.locate(snapshot, unit_index, 0)
        return self._units.read_part(block, lambda fd, block: read_thumbnail(fd, block, position))

    def mean_keys(
        self, snapshot: Snapshot, unit_indices: Sequence[int]
    ) -> dict[int, np.ndarray[Any, Any]]:
        """The mean keys, as they were before, of units that lost tokens since they were stored.

        What is derived from mean keys can so be made anew as it was.

        Returns:
            By unit, of those that are thinned now: (layers, kv_heads * head_dim) float32.

        Raises:
            BlockCorruptError: they are damaged.
            ValueError, SnapshotExpiredError, UnitDroppedError: as for `read`.
            SessionNotFoundError: too.
        """
        found: dict[int, np.ndarray[Any, Any]] = {}
        for unit_index in unit_indices:
            if unit_index in found:
                continue
            self._units.check_index(snapshot, unit_index)
            block, _ = self._units.locate(snapshot, unit_index, 0)
            rows = self._units.read_part(block, read_mean_keys)
            found.update({block.header.first_unit + place: row for place, row in rows.items()})
        return {unit: found[unit] for unit in unit_indices if unit in found}

    def close(self) -> None:
        """Close the files and mappings. No other call may be running or follow."""
        self._units.close()
        self._files.close()
        self._tracker.close()
