"""One live session: frames through the model into the store, and back to where it was after a stop.

A unit goes: vision tower -> text model -> hot tail and index row -> visible. The store makes
it durable a block at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kvstore.arena import Arena
from kvstore.encoding import Encoding
from kvstore.geometry import Geometry
from kvstore.limits import BlockLimits
from kvstore.pins import PinsNow
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from kvstore.unit import Unit
from kvstore.writer import SessionWriter
from retrieval.index_writer import KeyIndexWriter
from svc.engine.adapters.base import Adapter
from svc.engine.encoder import StreamEncoder, WindowUnit
from svc.engine.index_memory import IndexMemory
from svc.engine.key_rows import key_index_path, open_key_index
from svc.engine.layout import UnitLayout
from svc.engine.model import LoadedModel
from svc.engine.reducer import ReducedUnit, Reducer
from svc.engine.reduction.base import ReductionState
from svc.engine.reduction.spec import NO_REDUCTION, ReductionSpec
from svc.engine.reduction_file import ReductionFile
from svc.engine.stored_kv import read_units, to_stored
from svc.engine.unit_rows import Array, UnitRows
from svc.engine.window import WindowConfig, window_start
from svc.engine.window_cache import UnitKV

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameUnit:
    """One unit of frames, ready for the vision tower."""

    pixels: Tensor
    """(1, frames_per_unit, 3, height, width), as the adapter's `preprocess` makes it."""
    first_pts_s: float
    last_pts_s: float
    gap_before: bool
    thumbnail_jpeg: bytes
    resume: bytes
    """What the source of the frames needs to go on after this unit; not read here."""

    @property
    def mean_pts_s(self) -> float:
        """Between its first and its last frame."""
        return (self.first_pts_s + self.last_pts_s) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """What questions can use, and what survives a crash. Times are of last frames, in seconds."""

    visible_unit_count: int = 0
    durable_unit_count: int = 0
    visible_pts_s: float | None = None
    durable_pts_s: float | None = None
    window_rounded: bool = False
    """Whether the stream went on from a window that was read back from int8 or int4: what follows
    is then close to what an uninterrupted stream would hold, not equal to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where and how sessions are stored."""

    root: Path
    limits: BlockLimits
    encoding: Encoding = "model"
    shm_dir: Path | None = None
    hot_tail_bytes: int | None = None
    may_commit: Callable[[], bool] = lambda: True
    """Whether this process still owns the session; see SessionWriter.open."""
    min_epoch: int = 0
    arena: Arena | None = None
    """Takes the units that leave the hot tail; see SessionWriter.open."""
    pinned: PinsNow = lambda: ()
    """Spans of pts in seconds of which nothing goes; see SessionWriter.open."""


class StreamIngest:
    """The writing end of one session. One thread owns it, but for `status` and `received`.

    After an error of `encode` it is to be closed: opening the session again recovers it.
    """

    def __init__(
        self,
        adapter: Adapter,
        encoder: StreamEncoder,
        writer: SessionWriter,
        index: KeyIndexWriter,
        index_memory: IndexMemory,
        rows: UnitRows,
        reducer: Reducer,
        *,
        window_rounded: bool,
    ) -> None:
        """Internal: use `open`."""
        self._index_memory = index_memory
        self._rows = rows
        self.reducer = reducer
        self.adapter = adapter
        self.encoder = encoder
        self._writer = writer
        self._index = index
        self._window_rounded = window_rounded
        self._first_unit_count = writer.recovery.durable_unit_count
        self._visible_pts_s = writer.recovery.durable_pts_s
        self._received = (self._visible_pts_s, 0)
        self._watermarks = threading.Lock()
        self.status = self._status_now()
        """What is visible and durable; replaced as a whole, so any thread may read it."""

    @classmethod
    def open(
        cls,
        model: LoadedModel,
        window: WindowConfig,
        session_id: str,
        store: StoreOptions,
        reduction: ReductionSpec = NO_REDUCTION,
        adapter: Adapter | None = None,
    ) -> StreamIngest:
        """Take the session, recover it, and bring the encoder to where it was.

        Args:
            model, window, session_id, store, reduction: of the session.
            adapter: the model's for sessions of its shape; None: of the usual shape.

        Raises:
            KVStoreError: another process has it, it is damaged, or there is no room.
            OSError: there is no room for the index.
        """
        geometry = Geometry(
            layer_count=model.layer_count,
            kv_head_count=model.kv_head_count,
            head_dim=model.head_dim,
            element=model.element,
        )
        adapter = adapter or model.adapter
        rows = UnitRows(geometry, all_places=reduction.keeps_units_whole)
        reducer = Reducer(reduction, adapter)
        states = ReductionFile(store.root, session_id)
        writer = SessionWriter.open(
            store.root,
            session_id,
            geometry=geometry,
            encoding=store.encoding,
            limits=store.limits,
            shm_dir=store.shm_dir,
            hot_tail_bytes=store.hot_tail_bytes,
            may_commit=store.may_commit,
            min_epoch=store.min_epoch,
            arena=store.arena,
            pinned=store.pinned,
            before_commit=lambda unit_count: states.write(
                unit_count,
                reducer.state,
                durable_unit_count=writer.durable_unit_count,
                room=writer.room,
            ),
        )
        with ExitStack() as undo:
            undo.callback(writer.close)
            state = states.read(writer.durable_unit_count)
            if state is None and writer.durable_unit_count and reduction.compares_units:
                logger.warning(
                    "the next unit is kept whole: what it would be compared with is not there",
                    extra={"session": session_id},
                )
            reducer.state = state or ReductionState()
            encoder = StreamEncoder(model, window, adapter.advance)
            reader = SessionReader.open(store.root, session_id, disk_io=store.limits.disk_io)
            try:
                snapshot = reader.snapshot()
                path = key_index_path(store.root, session_id)
                memory = IndexMemory(store.arena, path, writer.room)
                undo.callback(memory.close)
                index = open_key_index(
                    store.root,
                    reader,
                    snapshot,
                    rows,
                    min_free_bytes=store.limits.min_free_bytes,
                    room=memory.room,
                )
                undo.callback(index.close)
                memory.settle(index.allocated_bytes)
                window_units = _window_units(adapter, window, reader, snapshot, geometry)
                encoder.restore(window_units)
            finally:
                reader.close()
            undo.pop_all()
        rounded = store.encoding != "model" and bool(window_units)
        if rounded:
            logger.info(
                "stream goes on from a window that was stored rounded",
                extra={
                    "session": session_id,
                    "encoding": store.encoding,
                    "unit_count": len(window_units),
                },
            )
        return cls(adapter, encoder, writer, index, memory, rows, reducer, window_rounded=rounded)

    @property
    def resume(self) -> bytes | None:
        """The blob that came with the last durable unit; None when there is none."""
        return self._writer.recovery.resume

    @torch.inference_mode()
    def encode(self, units: Sequence[FrameUnit]) -> None:
        """Encode the next units in one pass and make them visible, one after the other.

        Raises:
            KVStoreError, OSError: they cannot be stored; those before are visible.
        """
        seen = self.adapter.encode(
            torch.cat([unit.pixels for unit in units]),
            [unit.mean_pts_s for unit in units],
        )
        whole = [
            replace(each, gap_before=unit.gap_before)
            for unit, each in zip(units, seen, strict=True)
        ]
        self.keep(units, self.reducer.encode(self.encoder, whole))

    def keep(self, units: Sequence[FrameUnit], made: Iterable[ReducedUnit]) -> None:
        """Store what was made of the next units and make them visible, one after the other.

        Raises:
            KVStoreError, OSError: they cannot be stored; those before are visible.
        """
        for unit, reduced in zip(units, made, strict=True):
            self._keep(unit, reduced)

    def flush(self) -> None:
        """Make durable what is visible, and its index with it.

        Raises:
            KVStoreError, OSError: there is no room, or the disk has failed.
        """
        self._writer.flush()
        self.status = self._status_now()
        self._index.sync()

    def close(self) -> None:
        """Let go of the session; units that are not durable are gone."""
        try:
            self._index.close()
        finally:
            self._index_memory.close()
            self._writer.close()

    def received(self, pts_s: float, unit_count: int) -> None:
        """Tell readers what has been received; from any one thread.

        Args:
            pts_s: frames up to here are in the units counted, or belong to none.
            unit_count: units handed to this object so far, encoded or not.
        """
        with self._watermarks:
            self._received = (pts_s, unit_count)
            self._tell_watermarks()

    def _keep(self, unit: FrameUnit, reduced: ReducedUnit) -> None:
        kv, cells = reduced.kv, reduced.cells
        self._writer.append(
            Unit(
                index=self._index.count,
                first_pts_s=unit.first_pts_s,
                last_pts_s=unit.last_pts_s,
                token_count=len(cells),
                position_span=reduced.position_span,
                cells=cells,
                drop_fraction=reduced.drop_fraction,
                gap_before=unit.gap_before,
                thumbnail_jpeg=unit.thumbnail_jpeg,
            ),
            to_stored(kv.keys),
            to_stored(kv.values),
            resume=unit.resume,
        )
        self.reducer.state = reduced.state
        self._index.append(self._rows.of(cells, self._kept_keys(kv)))
        with self._watermarks:
            self._writer.publish()
            self._visible_pts_s = unit.last_pts_s
            self._tell_watermarks()
        self.status = self._status_now()

    def _kept_keys(self, kv: UnitKV) -> Array:
        """The unit's keys as the store keeps them, so that an index made anew has the same rows."""
        return to_stored(kv.keys) if self._writer.encoding == "model" else self._writer.last_keys()

    def _tell_watermarks(self) -> None:
        """Publishes what was received, and up to where nothing is on its way any more."""
        pts_s, unit_count = self._received
        if pts_s is None:
            return
        encoded_count = self._writer.visible_unit_count - self._first_unit_count
        settled_pts_s = pts_s if encoded_count >= unit_count else self._visible_pts_s
        self._writer.set_watermarks(received_pts_s=pts_s, settled_pts_s=settled_pts_s)

    def _status_now(self) -> StreamStatus:
        return StreamStatus(
            visible_unit_count=self._writer.visible_unit_count,
            durable_unit_count=self._writer.durable_unit_count,
            visible_pts_s=self._visible_pts_s,
            durable_pts_s=self._writer.durable_pts_s,
            window_rounded=self._window_rounded,
        )


def _window_units(
    layout: UnitLayout,
    window: WindowConfig,
    reader: SessionReader,
    snapshot: Snapshot,
    geometry: Geometry,
) -> list[WindowUnit]:
    """Return the stored units that the next unit will see."""
    start = window_start(snapshot.token_counts.tolist(), snapshot.position_spans.tolist(), window)
    units = range(max(start, snapshot.first_unit), snapshot.unit_count)

    def positions(unit: int) -> Tensor:
        cells = reader.cells(snapshot, unit)
        local = layout.local_positions(cells, np.array([len(cells)]))
        return torch.from_numpy(local)

    return [
        WindowUnit(
            keys=kv.keys,
            values=kv.values,
            positions=positions(unit),
            position_span=int(snapshot.position_spans[unit]),
        )
        for unit, kv in zip(units, read_units(reader, snapshot, geometry, units), strict=True)
    ]
