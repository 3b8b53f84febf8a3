"""Open readers of sessions, shared by the questions about them, bounded, closed when unused."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from kvstore.control import Watermarks
from kvstore.directio import DiskMode
from kvstore.errors import KVStoreError, SessionNotFoundError
from kvstore.location import NOWHERE, OtherLocation
from kvstore.quarantine import Quarantine, sweep_quarantine
from kvstore.ramtier import RamTier
from kvstore.reader import SessionReader
from kvstore.session import SessionRecord, load_session
from kvstore.snapshot import Snapshot
from retrieval.index import KeyIndexReader
from svc.engine.key_rows import key_index_path

logger = logging.getLogger(__name__)

LOOK_AT_LEAST_EVERY_S = 5.0
"""How old what is known of a session of another machine may be, whatever is announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A session at one moment; taken in an order in which nothing that is settled is missed."""

    record: SessionRecord
    watermarks: Watermarks
    snapshot: Snapshot


class OpenSession:
    """One session's reader and index. What is open stays open while it is leased."""

    def __init__(
        self,
        root: Path,
        record: SessionRecord,
        ram: RamTier | None,
        disk_io: DiskMode,
        location: OtherLocation,
    ) -> None:
        """Opens the session that the record describes.

        Raises:
            KVStoreError: it was deleted meanwhile, or is damaged.
        """
        self.session_id = record.session_id
        self.version = _version(record)
        self.reader = SessionReader.open(
            root,
            record.session_id,
            quarantine=Quarantine(root, record.session_id),
            ram=ram,
            disk_io=disk_io,
            location=location,
        )
        self.lease_count = 0
        self.discarded = False
        self._looked_s = time.monotonic()
        self.news: threading.Event | None = None
        """Set while what others make durable is told as it comes; None: nobody tells."""
        self._root = root
        self._index_path = key_index_path(root, record.session_id)
        self._index: KeyIndexReader | None = None
        self._old_indexes: list[KeyIndexReader] = []
        self._opening = threading.Lock()

    def look(self) -> Look:
        """Returns the session as it is now; blocks on I/O.

        Raises:
            KVStoreError: it was deleted, or is damaged.
        """
        record = load_session(self._root, self.session_id)
        watermarks = self.reader.watermarks()
        return Look(record=record, watermarks=watermarks, snapshot=self._snapshot(record))

    def _snapshot(self, record: SessionRecord) -> Snapshot:
        if self.news is None or self.reader.writer_is_here or record.state == "finished":
            return self.reader.snapshot()
        # Of another machine: the files are read once for each thing that is announced, and where
        # nothing can be heard, for each question. Its process may not reach Redis while we do.
        if self.news.is_set() and time.monotonic() - self._looked_s < LOOK_AT_LEAST_EVERY_S:
            return self.reader.known()
        return self._look_again()

    def _look_again(self) -> Snapshot:
        self._looked_s = time.monotonic()
        return self.reader.look_again()

    def catch_up(self, unit_count: int) -> None:
        """Sees to it that so many durable units are known; blocks on I/O.

        Raises:
            KVStoreError: the session was deleted, or is damaged.
        """
        if self.reader.known().durable_unit_count < unit_count:
            self._look_again()

    def index_of(self, snapshot: Snapshot) -> KeyIndexReader | None:
        """Returns the index that serves a snapshot; None when its writer is not so far yet.

        A writer announces its epoch first, and then brings the index to it: that takes long in a
        long session. Opened when first needed: a session without units has none.

        The snapshot's rows are checked here, where nobody else waits for the disk, so that the
        model thread finds them checked.

        Raises:
            IndexDamagedError: it is absent, foreign or torn, or a row fails its checksum.
            EpochChangedError, IndexShortError: a writer came meanwhile; take both anew.
        """
        with self._opening:
            index = self._index
            if index is None or index.epoch != snapshot.epoch:
                index = KeyIndexReader.open(self._index_path)
                if index.epoch < snapshot.epoch and self.reader.writer_open:
                    index.close()
                    return None
                if self._index is not None:
                    self._old_indexes.append(self._index)  # questions may be reading it
                self._index = index
        if index.count < snapshot.unit_count and self.reader.writer_open:
            if not self.reader.writer_is_here:
                # A file system of several machines looks at what is mapped when it is opened.
                with open(self._index_path, "rb"):
                    pass
            return None  # it is made anew from the blocks
        index.check(snapshot.unit_count)
        return index

    def close_old_indexes(self) -> None:
        """Closes indexes of earlier epochs; nobody may be using the session."""
        while self._old_indexes:
            self._old_indexes.pop().close()

    def close(self) -> None:
        """Closes the files; nobody may be using them."""
        self.close_old_indexes()
        if self._index is not None:
            self._index.close()
        self.reader.close()


class Lease:
    """The right to use an open session until `release`. Safe to release from any thread."""

    def __init__(self, session: OpenSession, release: Callable[[OpenSession], None]) -> None:
        """Made by `SessionCache.lease`."""
        self.session = session
        self._release = release
        self._released = False

    def release(self) -> None:
        """Gives the right back; once is enough, more does no harm."""
        if not self._released:
            self._released = True
            self._release(self.session)


class SessionCache:
    """Keeps the last used sessions open: `capacity`, or those in use. Thread-safe; blocks on I/O.

    A session that was deleted, or deleted and made anew under the same name, is found out at the
    next question about it; `sweep` lets go of deleted ones that nobody asks about.
    """

    def __init__(
        self,
        root: Path,
        *,
        capacity: int,
        ram: RamTier | None = None,
        disk_io: DiskMode = "auto",
        location: OtherLocation = NOWHERE,
    ) -> None:
        """`root` is the store's folder; `ram` is what its readers ask before the disk, `disk_io`
        how they read slices there, `location` what they ask when it fails.
        """
        self._location = location
        self._root = root
        self._disk_io: DiskMode = disk_io
        self._ram = ram
        self._capacity = capacity
        self._open: OrderedDict[str, OpenSession] = OrderedDict()
        self._lock = threading.Lock()

    def lease(self, session_id: str) -> Lease:
        """Returns the session, opened if need be.

        Raises:
            KVStoreError: there is none, its name is none, or it is damaged.
        """
        record = load_session(self._root, session_id)
        session = self._take(record)
        if session is None:
            opened = OpenSession(self._root, record, self._ram, self._disk_io, self._location)
            session = self._take(record, opened)
        return Lease(session, self._release)

    def lease_again(self, session: OpenSession) -> Lease:
        """Returns one more lease on a session that is leased."""
        with self._lock:
            return self._leased(session)

    def lease_open(self, session: OpenSession) -> Lease | None:
        """Returns a lease on a session that nobody may have leased; None: it was let go of."""
        with self._lock:
            return None if session.discarded else self._leased(session)

    def _leased(self, session: OpenSession) -> Lease:
        session.lease_count += 1
        return Lease(session, self._release)

    @overload
    def _take(self, record: SessionRecord, opened: OpenSession) -> OpenSession: ...

    @overload
    def _take(self, record: SessionRecord) -> OpenSession | None: ...

    def _take(self, record: SessionRecord, opened: OpenSession | None = None) -> OpenSession | None:
        """Counts one more lease on the session that the record describes, if it is open.

        `opened` becomes that session, unless another thread was faster.
        """
        with self._lock:
            session = self._open.get(record.session_id)
            if session is not None and session.version != _version(record):
                self._discard(session)
                session = None
            if session is None and opened is not None:
                session = self._open[record.session_id] = opened
            elif opened is not None:
                opened.close()
            if session is not None:
                session.lease_count += 1
                self._open.move_to_end(record.session_id)
                self._shrink()
            return session

    def discard(self, session: OpenSession) -> None:
        """Makes the next lease open the session anew."""
        with self._lock:
            self._discard(session)

    def sweep(self) -> None:
        """Lets go of sessions that were deleted: open files would keep their disk space.

        What was remembered of their damage goes too.
        """
        with self._lock:
            unused = [session for session in self._open.values() if not session.lease_count]
            leases = [self._leased(session) for session in unused]  # or it is closed meanwhile
        with ExitStack() as stack:
            for lease in leases:
                stack.callback(lease.release)
            for lease in leases:
                self._look_over(lease.session)
        sweep_quarantine(self._root)
        if self._ram is not None:
            self._ram.refresh()

    def _look_over(self, session: OpenSession) -> None:
        try:
            session.reader.snapshot()
        except SessionNotFoundError:
            self.discard(session)
        except (KVStoreError, OSError) as error:
            self.discard(session)  # the next question opens it anew, and is told
            logger.warning(
                "open session cannot be looked at",
                extra={"session": session.session_id, "reason": str(error)},
            )

    def close(self) -> None:
        """Closes everything that is not leased."""
        with self._lock:
            for session in list(self._open.values()):
                self._discard(session)

    def _release(self, session: OpenSession) -> None:
        with self._lock:
            session.lease_count -= 1
            if not session.lease_count:
                session.close_old_indexes()
                if session.discarded:
                    session.close()
            self._shrink()

    def _discard(self, session: OpenSession) -> None:
        """Forgets a session; it is closed now, or by its last lease. The lock is held."""
        if session.discarded:
            return
        session.discarded = True
        if self._open.get(session.session_id) is session:
            del self._open[session.session_id]
        if not session.lease_count:
            session.close()

    def _shrink(self) -> None:
        """Closes the sessions that were not used for longest. The lock is held."""
        unused = [session for session in self._open.values() if not session.lease_count]
        for session in unused[: max(0, len(self._open) - self._capacity)]:
            self._discard(session)


def _version(record: SessionRecord) -> tuple[float, str]:
    """Returns what a reader must be opened anew for.

    That is another session under the same name, or the end of this one: its reader would keep the
    shared memory of its last units.
    """
    return record.created_unix_s, record.state
