"""The one writer of a session: units become visible in the hot tail, then durable in blocks."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from kvstore.arena import Arena
from kvstore.control import WriterState
from kvstore.diskio import DiskIO, lies_in_memory
from kvstore.encoding import Encoding, Layout
from kvstore.encoding_codec import decode_keys
from kvstore.errors import (
    StoreFullError,
    WriterClosedError,
    WriterFailedError,
    WriterFencedError,
)
from kvstore.geometry import Geometry
from kvstore.hottail import HotRecord
from kvstore.limits import BlockLimits
from kvstore.locking import release_session
from kvstore.opening import WriterParts, open_parts
from kvstore.unit import Unit

logger = logging.getLogger(__name__)


class SessionWriter:
    """Appends units to one session. Not thread-safe: one thread owns it.

    `append` puts a unit into shared memory, `publish` makes it visible, a commit (by `append` when
    a block is full, or by `flush`) makes it durable. After an I/O error the writer is dead: close
    it and open another, which recovers.
    """

    def __init__(
        self,
        session_id: str,
        layout: Layout,
        limits: BlockLimits,
        parts: WriterParts,
        may_commit: Callable[[], bool],
        before_commit: Callable[[int], None],
    ) -> None:
        """Internal: use `open`."""
        self.session_id = session_id
        self.geometry = layout.geometry
        self.encoding = layout.encoding
        self._limits = limits
        self._lock_fd = parts.lock_fd
        self._control = parts.control
        self._hot = parts.hot
        self._log = parts.log
        self._space = parts.space
        self.recovery = recovery = parts.recovery
        self.visible_unit_count = recovery.durable_unit_count
        self.durable_unit_count = recovery.durable_unit_count
        self.durable_pts_s = recovery.durable_pts_s
        self._last_pts_s = recovery.durable_pts_s
        self._appended = recovery.durable_unit_count
        self._pending: list[HotRecord] = []
        self._pending_tokens = 0
        self._resume = b""
        self._failure: str | None = None
        self._may_commit = may_commit
        self._before_commit = before_commit
        self._fenced = False
        self._closed = False

    @classmethod
    def open(
        cls,
        root: Path,
        session_id: str,
        *,
        geometry: Geometry,
        encoding: Encoding = "model",
        limits: BlockLimits,
        shm_dir: Path | None = None,
        hot_tail_bytes: int | None = None,
        io: DiskIO | None = None,
        may_commit: Callable[[], bool] = lambda: True,
        min_epoch: int = 0,
        arena: Arena | None = None,
        pinned: Callable[[], Sequence[tuple[float, float]]] = lambda: (),
        before_commit: Callable[[int], None] = lambda _: None,
    ) -> SessionWriter:
        """Take the session's lock, recover its log and begin a new epoch.

        Creates the session's folder when absent. A torn, never acknowledged tail is cut; units
        that were visible but not durable are gone.

        Args:
            encoding: how keys and values are stored; a session keeps the one it was begun with.
            shm_dir: folder of the hot tail; without it /dev/shm, or the root when that is full.
            hot_tail_bytes: size of the hot tail's ring; without it, three full blocks, 1 GiB at
                most.
            io: the system calls (a seam for fault injection).
            may_commit: whether this process still owns the session, beyond what the lock says;
                asked from any thread, before each change that readers see, and again between a
                commit and its acknowledgement. Once it says no, the writer is fenced: it touches
                nothing of the session any more.
            min_epoch: the epoch that begins is at least this one.
            arena: takes the units that leave the hot tail, and has a budget for both.
            pinned: half-open spans of pts in seconds of which nothing is dropped, aged out or
                thinned; asked anew, on this writer's thread, whenever something is to go.
            before_commit: called with the count of units that are about to become durable, those
                before them included, on this writer's thread. What it raises leaves them pending.

        Raises:
            InvalidSessionIdError: the id cannot name a session.
            SessionLockedError: another writer holds the session.
            SessionNotFoundError: the session is being deleted.
            BlockCorruptError: an acknowledged block is damaged or missing.
            GeometryMismatchError: the session holds keys and values of another shape or encoding.
            StoreFullError: there is no room for the hot tail, on its file system or in the
                arena's budget.
            FormatVersionError: a file of another version of the format.
        """
        layout = Layout(geometry, encoding)
        parts = open_parts(
            root,
            session_id,
            layout=layout,
            limits=limits,
            shm_dir=shm_dir,
            hot_tail_bytes=hot_tail_bytes,
            io=io or DiskIO(),
            min_epoch=min_epoch,
            arena=arena,
            pinned=pinned,
            may_commit=may_commit,
        )
        if lies_in_memory(root):
            logger.warning(
                "the store lies in memory, nothing in it survives a power loss",
                extra={"session": session_id, "root": str(root)},
            )
        logger.info(
            "session writer opened",
            extra={
                "session": session_id,
                "epoch": parts.recovery.epoch,
                "durable_unit_count": parts.recovery.durable_unit_count,
                "torn_bytes": parts.recovery.torn_bytes,
            },
        )
        return cls(session_id, layout, limits, parts, may_commit, before_commit)

    def append(
        self,
        unit: Unit,
        keys: np.ndarray[Any, Any],
        values: np.ndarray[Any, Any],
        *,
        resume: bytes,
    ) -> None:
        """Put a unit into the hot tail; `publish` makes it visible.

        Commits the pending block first when this unit would take it past its limits, or when its
        units would have to leave the hot tail to make room.

        Args:
            keys, values: (layer_count, token_count, kv_head_count, head_dim) of the geometry's
                storage dtype; keys before RoPE. Copied; in a quantised encoding what is read back
                lies within half a step of them.
            resume: what a restart needs once this unit is the last durable one.

        Raises:
            ValueError: the unit does not follow the last one, or the shapes do not fit.
            UnitTooLargeError: it does not fit in the hot tail.
            StoreFullError: the pending block found no room; the unit was not taken. Appending it
                again once there is room is safe, unless the disk filled in the middle of a
                write: then the writer is dead, and says so on the next call.
            NotFiniteError: NaN or infinity, which the encoding has no place for; the unit was not
                taken.
            WriterFailedError: the writer is dead.
            WriterFencedError: `may_commit` said no. So do all methods but `close`.
        """
        self._check_alive()
        self._check_unit(unit, keys, values)
        if self._pending and self._would_pass_limits(unit):
            self._commit()
        if self._hot.floor_after(unit) > self.durable_unit_count:
            self._commit()
        record = self._hot.append(unit, keys, values)
        self._pending.append(record)
        self._pending_tokens += unit.token_count
        self._resume = bytes(resume)
        self._appended += 1
        self._last_pts_s = unit.last_pts_s

    def last_keys(self) -> np.ndarray[Any, Any]:
        """Keys of the unit that was appended last as readers get them: what is derived from keys
        is to follow from what is kept of them.

        Returns:
            (layer_count, token_count, kv_head_count, head_dim) of the storage dtype; a copy.

        Raises:
            ValueError: nothing was appended yet.
        """
        if not self._pending:
            raise ValueError("no unit was appended")
        record, shape = self._pending[-1], self.geometry
        keys = np.empty(
            (shape.layer_count, record.unit.token_count, shape.kv_head_count, shape.head_dim),
            shape.storage_dtype,
        )
        for extent, layer_keys in zip(record.extents, keys, strict=True):
            decode_keys(Layout(shape, self.encoding), extent, layer_keys)
        return keys

    def publish(self) -> None:
        """Make every appended unit visible to readers of all processes."""
        self._check_alive()
        self._control.set_visible(self._appended)
        self.visible_unit_count = self._appended

    def set_watermarks(self, *, received_pts_s: float, settled_pts_s: float | None) -> None:
        """Tell readers what is on its way; may be called from any thread, until `close`.

        Args:
            received_pts_s: media time of the last frame that was received.
            settled_pts_s: every unit with a last frame at or before it is visible.
        """
        self._check_owned()
        self._control.set_watermarks(received_pts_s=received_pts_s, settled_pts_s=settled_pts_s)

    def flush(self) -> None:
        """Make every appended unit durable.

        Raises:
            StoreFullError: no room; nothing acknowledged is lost, and it may be tried again.
            WriterFailedError: the writer is dead.
        """
        self._check_alive()
        self._commit()

    def room(self, byte_count: int) -> AbstractContextManager[None]:
        """Hold room for what grows beside the blocks, such as a key index, inside a `with`.

        Derived data is recovery's too, and may take the budgets' reserve.

        Raises (on entering):
            StoreFullError: a budget or the disk does not allow it.
        """
        self._check_alive()
        return self._space.claim(byte_count, use_reserve=True)

    def close(self) -> None:
        """End the writer: release the lock and the hot tail. Units not flushed are gone."""
        if self._closed:
            return
        self._closed = True
        if self._fenced or not self._may_commit():
            self._leave_alone()
            return
        try:
            # What is not durable is lost, and what was on its way will not come any more.
            settled_pts_s = self._control.watermarks().settled_pts_s
            if self.durable_unit_count < self._appended:
                settled_pts_s = self.durable_pts_s
            self._control.set_visible(min(self.visible_unit_count, self.durable_unit_count))
            self._control.set_watermarks(received_pts_s=settled_pts_s, settled_pts_s=settled_pts_s)
            if self._failure is None:
                self._control.set_state(WriterState.CLOSED)
                self._log.close()
                self._control.sync()
            else:
                self._log.abandon()
        finally:
            self._pending.clear()
            self._hot.close(durable_unit_count=self.durable_unit_count)
            self._control.close()
            release_session(self._lock_fd)

    def _leave_alone(self) -> None:
        """Let go without a word: the log and the CTL page may be another writer's."""
        self._pending.clear()
        try:
            self._log.abandon()
            self._hot.close()
            self._control.close()
        finally:
            release_session(self._lock_fd)

    def _commit(self) -> None:
        if not self._pending:
            return
        self._check_owned()
        self._before_commit(self._pending[-1].unit.index + 1)
        try:
            begins_segment = self._log.append(self._pending, self._resume)
        except (StoreFullError, WriterFencedError):
            raise
        except OSError as error:
            self._check_owned()
            self._fail(error)
        except BaseException as error:
            # How far it came, nobody knows: written once more, its units would be there twice.
            self._die(repr(error))
            raise
        # Paused since? Then the block may lie where no reader looks: it is not acknowledged.
        self._check_owned()
        last = self._pending[-1].unit
        self.durable_unit_count = last.index + 1
        self.durable_pts_s = last.last_pts_s
        self._pending.clear()
        self._pending_tokens = 0
        self._control.set_durable(units=self.durable_unit_count, blocks=self._log.block_count)
        if begins_segment:
            self._age(last.last_pts_s)

    def _age(self, newest_pts_s: float) -> None:
        """Drop what is too old. The block that was committed before stands, whatever happens."""
        try:
            self._log.drop_expired(newest_pts_s)
        except OSError as error:
            self._check_owned()
            self._fail(error)

    def _fail(self, error: OSError) -> NoReturn:
        # Never retried: after one failed sync the kernel drops the pages and the next succeeds.
        self._die(str(error))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise self._log.full_error() from error
        raise WriterFailedError(self.session_id, str(error)) from error

    def _die(self, cause: str) -> None:
        self._failure = cause
        self._control.set_state(WriterState.FAILED)
        logger.error("session writer failed", extra={"session": self.session_id, "cause": cause})

    def _would_pass_limits(self, unit: Unit) -> bool:
        tokens = self._pending_tokens + unit.token_count
        span_s = unit.last_pts_s - self._pending[0].unit.first_pts_s
        return tokens > self._limits.block_tokens or span_s > self._limits.block_span_s

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise WriterFailedError(self.session_id, self._failure)
        if self._closed:
            raise WriterClosedError(self.session_id)
        self._check_owned()

    def _check_owned(self) -> None:
        if not self._fenced and not self._may_commit():
            self._fenced = True
            logger.warning("session writer fenced", extra={"session": self.session_id})
        if self._fenced:
            raise WriterFencedError(self.session_id)

    def _check_unit(
        self, unit: Unit, keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
    ) -> None:
        if unit.index != self._appended:
            raise ValueError(f"unit {self._appended} is next, got unit {unit.index}")
        if self._last_pts_s is not None and unit.first_pts_s < self._last_pts_s:
            raise ValueError(
                f"unit {unit.index} starts at {unit.first_pts_s} s, before {self._last_pts_s} s"
            )
        shape = self.geometry
        expected = (shape.layer_count, unit.token_count, shape.kv_head_count, shape.head_dim)
        for name, array in (("keys", keys), ("values", values)):
            if array.shape != expected or array.dtype != shape.storage_dtype:
                raise ValueError(
                    f"{name} must be {expected} {shape.storage_dtype}, "
                    f"got {array.shape} {array.dtype}"
                )
        self._hot.record_bytes(unit)
