"""How a reader keeps up with a session: CTL page, hot tail and block headers into snapshots."""

from __future__ import annotations

import logging
from pathlib import Path

from kvstore.blockread import Block, TornBlockError, read_block
from kvstore.control import ControlPage, ControlState, Watermarks, WriterState
from kvstore.controltext import ControlText
from kvstore.elsewhere import Elsewhere
from kvstore.encoding import Layout
from kvstore.errors import BlockCorruptError, HotTailCorruptError, SessionNotFoundError
from kvstore.floor import read_floor
from kvstore.follow import LogFollower
from kvstore.format import SegmentHeader
from kvstore.hotview import HotTailView
from kvstore.paths import segment_path, session_hash
from kvstore.scan import LogScan, read_page, scan_log
from kvstore.segmentfiles import SegmentFiles
from kvstore.snapshot import Snapshot
from kvstore.units import UnitCatalog
from kvstore.wholesegment import read_segment

logger = logging.getLogger(__name__)

_OFFLINE_TRIES = 5


class SessionTracker:
    """What a reader knows of its session. `refresh` needs the reader's lock; the rest does not."""

    def __init__(
        self,
        folder: Path,
        session_id: str,
        files: SegmentFiles,
        elsewhere: Elsewhere,
        *,
        keeps_checksums: bool,
    ) -> None:
        """`keeps_checksums`: whether the catalogs have what a RAM tier is asked by."""
        self.folder = folder
        self._session_id = session_id
        self._session_hash = session_hash(session_id)
        self._files = files
        self._follower = LogFollower(folder, session_id, files, elsewhere)
        self._control: ControlPage | None = None
        self._epoch = 0
        self._hot: HotTailView | None = None
        self._latest: tuple[ControlState | None, Snapshot] | None = None
        self._rewrite_count = -1
        self._keeps_checksums = keeps_checksums
        self.catalog = UnitCatalog(keeps_checksums=keeps_checksums)
        self.layout: Layout | None = None

    def unchanged(self) -> Snapshot | None:
        """The last snapshot, when the CTL page has not changed since."""
        latest = self._latest
        if latest is None or self._control is None:
            return None
        state, snapshot = latest
        return snapshot if state == self._control.state() else None

    def refresh(self) -> Snapshot:
        """Catch up and make a snapshot.

        Raises:
            SessionNotFoundError: the session was deleted.
            BlockCorruptError: a durable block's header or unit table is damaged.
            HotTailCorruptError: a visible unit is damaged in shared memory.
            ControlCorruptError: the CTL page is damaged beyond healing.
        """
        if self._control is None:
            self._check_exists()
            self._control = ControlPage.open(self.folder, self._session_hash)
        while True:
            state = self._control.state() if self._control else None
            if self._latest is not None and self._latest[0] == state:
                return self._latest[1]
            if state is not None and state.writer_state == WriterState.DELETED:
                raise SessionNotFoundError(self._session_id)
            text = self._control.text(state.epoch) if self._control and state else None
            if self._control and state and state.this_boot and text:
                snapshot = self._online(self._control, state, text)
            else:
                snapshot = self._offline(state)
            if snapshot is not None:
                self._latest = (state, snapshot)
                return snapshot

    def look_again(self) -> Snapshot:
        """Catch up with a writer of another machine: its changes may not reach our mapping.

        Raises:
            As `refresh`.
        """
        self._check_exists()
        # The page before it goes with the last thread that reads it.
        self._control = ControlPage.open(self.folder, self._session_hash)
        self._latest = None
        return self.refresh()

    def known(self) -> Snapshot | None:
        """The last snapshot; None: none was made since the session was opened or looked at."""
        latest = self._latest
        return None if latest is None else latest[1]

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the CTL page was written since this machine was started: it is then exact."""
        return self._control is not None and self._control.state().this_boot

    def watermarks(self) -> Watermarks:
        """What is on its way; nothing known before the first writer.

        Nothing is settled where the next snapshot may lack visible units: those that only the
        hot tail holds, when it is out of reach or not tried yet.
        """
        if self._control is None:
            return Watermarks(0, None, None)
        marks = self._control.watermarks()
        # After the marks: what is durable now, the snapshot that is taken next has.
        state = self._control.state()
        met = self._epoch == marks.epoch  # read before _hot, which is set before it
        if met and (self._hot is not None or state.visible_unit_count <= state.durable_unit_count):
            return marks
        return marks._replace(settled_pts_s=None)

    @property
    def writer_open(self) -> bool:
        """Whether the last writer has not ended; one that was killed has not either."""
        return self._control is not None and (
            self._control.state().writer_state == WriterState.OPEN
        )

    def close(self) -> None:
        """Unmap the CTL page, and the hot tail unless a snapshot still holds it."""
        self._hot = None
        self._latest = None
        if self._control is not None:
            self._control.close()
            self._control = None

    def _online(
        self, control: ControlPage, state: ControlState, text: ControlText
    ) -> Snapshot | None:
        """A snapshot from the pages of this boot; None when they moved on meanwhile."""
        if state.epoch != self._epoch and not self._enter_epoch(control, state, text):
            return None
        if state.rewrite_count != self._rewrite_count:
            self.meet_rewrites()
            self._rewrite_count = state.rewrite_count
        self._meet_floor(state.first_unit)
        if self.catalog.floor.first_unit > state.first_unit and control.state() != state:
            return None
        catalog = self.catalog
        if state.durable_block_count > catalog.block_count:
            try:
                self._follower.follow(catalog, text.layout, state.durable_block_count)
            except FileNotFoundError as error:
                if control.state() != state:
                    return None
                self._check_exists()
                raise BlockCorruptError(
                    self._session_id, catalog.block_count, "its segment is missing"
                ) from error
            except BlockCorruptError:
                # A segment may have been written anew under our eyes, and not be announced yet.
                if self.meet_rewrites() or control.state() != state:
                    return None
                raise
        if not self._take_hot_units(control, state):
            return None
        if (
            state.writer_state != WriterState.OPEN
            and state.visible_unit_count <= state.durable_unit_count
        ):
            self._hot = None  # nobody needs its memory any more but snapshots that hold it
        unit_count = min(state.visible_unit_count, catalog.unit_count)
        return catalog.snapshot(state.epoch, unit_count, state.durable_unit_count, self._hot)

    def _meet_floor(self, first_unit: int) -> None:
        """Let go of what was dropped, once the writer says that there is a new first unit."""
        if first_unit <= self.catalog.floor.first_unit:
            return
        floor = read_floor(self.folder, self._session_id, self._session_hash)
        if floor.first_unit < first_unit:
            self._check_exists()
            reason = f"the record of what was dropped before unit {first_unit} is missing"
            raise BlockCorruptError(self._session_id, floor.first_block, reason)
        self.catalog = self.catalog.raised(floor)
        self._files.forget_before(floor.first_segment)

    def meet_rewrites(self) -> bool:
        """Read the segments anew that were thinned since their blocks were read; needs the lock.

        Returns:
            Whether there were any.

        Raises:
            BlockCorruptError: one is damaged.
        """
        renewed: list[Block] = []
        for known in self.catalog.places.segments():
            blocks = self._read_if_rewritten(*known)
            if blocks:
                self._files.forget_one(known.number)
                renewed += blocks
        if renewed:
            self.catalog = self.catalog.rewritten(renewed)
            self._latest = None
        return bool(renewed)

    def _read_if_rewritten(self, number: int, generation: int, block_count: int) -> list[Block]:
        """The blocks of a segment of another generation; none when it is the one that is known."""
        path = segment_path(self.folder, number)
        try:
            with open(path, "rb", buffering=0) as file:
                header = SegmentHeader.unpack(read_page(file.fileno(), 0), path)
                if header is None or header.generation == generation:
                    return []
                return read_segment(
                    file.fileno(),
                    path,
                    number=number,
                    session_hash=self._session_hash,
                    session_id=self._session_id,
                    block_count=block_count,
                ).blocks
        except FileNotFoundError:
            return []  # dropped: the floor tells

    def _enter_epoch(self, control: ControlPage, state: ControlState, text: ControlText) -> bool:
        """Meet a new writer: keep the blocks that it kept, map its hot tail."""
        hot = HotTailView.open(
            text.hot_tail_path,
            session_hash=self._session_hash,
            epoch=state.epoch,
            layout=text.layout,
        )
        if hot is None and state.writer_state == WriterState.OPEN:
            if control.state() != state:
                return False
            logger.warning(
                "hot tail out of reach, serving durable units only",
                extra={"session": self._session_id, "path": str(text.hot_tail_path)},
            )
        self.catalog = self.catalog.cut(state.durable_block_count)
        last = self.catalog.places.last
        self._files.forget(last.segment_number + 1 if last else 0)
        self.layout = text.layout
        self._hot = hot
        self._epoch = state.epoch
        self._rewrite_count = -1  # a writer that died may not have told of its last
        return True

    def _take_hot_units(self, control: ControlPage, state: ControlState) -> bool:
        """Add visible units that no known block holds; False when they became durable."""
        while self._hot is not None and self.catalog.unit_count < state.visible_unit_count:
            unit_index = self.catalog.unit_count
            entry = self._hot.entry(unit_index)
            if entry is not None:
                self.catalog.add_rows(entry.table.rows)
                continue
            if control.state() != state:
                return False
            raise HotTailCorruptError(self._session_id, unit_index)
        return True

    def _offline(self, state: ControlState | None) -> Snapshot | None:
        """A snapshot from the disk alone: no writer was there since the machine started."""
        acknowledged, begun_epoch = self._control.begun() if self._control else (0, 0)
        for _ in range(_OFFLINE_TRIES):
            self._check_exists()
            try:
                scan = scan_log(
                    self.folder,
                    self._session_id,
                    self._session_hash,
                    acknowledged_block_count=acknowledged,
                    begun_epoch=begun_epoch,
                )
                self._take_scan(scan)
            except FileNotFoundError:
                # A writer that recovers may remove a segment under our eyes.
                continue
            except BlockCorruptError:
                if self._control is None or self._control.state() == state:
                    raise
                return None  # it has begun to thin
            epoch = max(scan.highest_epoch, state.epoch if state else 0)
            unit_count = self.catalog.unit_count
            return self.catalog.snapshot(epoch, unit_count, unit_count, None)
        raise BlockCorruptError(self._session_id, self.catalog.block_count, "a segment is missing")

    def _take_scan(self, scan: LogScan) -> None:
        catalog = UnitCatalog(scan.floor, keeps_checksums=self._keeps_checksums)
        self._files.forget(0)
        for place in scan.blocks:
            with self._files.use(place.segment_number) as fd:
                try:
                    catalog.add_block(read_block(fd, place))
                except TornBlockError as error:
                    raise BlockCorruptError(
                        self._session_id, place.header.sequence, str(error)
                    ) from error
        self.catalog = catalog
        self.layout = scan.layout
        self._epoch = 0

    def _check_exists(self) -> None:
        if not self.folder.is_dir():
            raise SessionNotFoundError(self._session_id)
