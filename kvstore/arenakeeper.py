"""What the owner of the RAM tier does beside taking what leaves hot tails, a little at a time.

It hears what questions used, brings in what they read from the disk, looks whether memory kept
what it was given, and gives back what readers took of given-up memory. Every turn has a limit, so
that whoever calls sets the rate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.arena import Arena
from kvstore.arenalayout import SliceKey
from kvstore.errors import KVStoreError, UnitDroppedError
from kvstore.eviction import Place
from kvstore.filepool import FilePool
from kvstore.geometry import Tier
from kvstore.paths import INDEX_NAME, session_folder, session_hash, stored_session_names
from kvstore.reader import SessionReader
from kvstore.readtrace import (
    SESSION,
    UNIT,
    TraceReader,
    layers_of,
    read_from,
)
from kvstore.segmentfiles import OpenFile
from kvstore.sharedfile import clean_stale_files
from kvstore.snapshot import Snapshot
from kvstore.wanted import Wanted

logger = logging.getLogger(__name__)

_MOST_WANTED = 1 << 16
_LEAST_COST_BYTES = 4096
"""What a slice counts for in a turn at least, whatever comes of it."""
_OPENING_COST_BYTES = 1 << 20
"""What opening a session counts for: its headers and unit tables are read."""
_OPEN_SEGMENT_DESCRIPTORS = 2
"""Of the one thread that reads here, beside those of the process's other readers."""
_ASKED_FOR_S = 60.0
"""How long after a question a session's key index counts as memory in use."""


class ArenaKeeper:
    """Looks after one arena. Used from one thread."""

    def __init__(
        self,
        arena: Arena,
        root: Path,
        *,
        shm_dir: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`root` and `shm_dir` are the arena's."""
        self._arena = arena
        self._root = root
        self._shm_dir = shm_dir
        self._clock = clock
        self._traces = TraceReader(root, shm_dir=shm_dir)
        self._wanted = Wanted(_MOST_WANTED)
        self._reader: SessionReader | None = None
        self._reader_hash: int | None = None
        self._open_files: FilePool[OpenFile] = FilePool(lambda: _OPEN_SEGMENT_DESCRIPTORS)
        self._names: dict[int, str] = {}
        self._asked_s: dict[int, float] = {}
        self._listed = False
        """Whether the store's folder was listed since the last look."""
        self._over = False
        self._next_slot = 0
        self._collapses = True

    def look(self) -> None:
        """Hear what questions used and read since the last look; remove rings of the dead."""
        self._listed = False
        records = self._traces.poll()
        clean_stale_files(self._root, "use", shm_dir=self._shm_dir)
        self._arena.touch(_places(records[read_from(records, Tier.RAM)]))
        for place in _places(records[read_from(records, Tier.DISK)]):
            self._wanted.add(place)
        now_s = self._clock()
        self._asked_s |= dict.fromkeys(np.unique(records[:, SESSION]).tolist(), now_s)
        self._count_read(now_s)
        self._arena.settle()

    def fill(self, byte_count: int) -> int:
        """Bring in slices that questions read from the disk, until so many bytes were read.

        What brings nothing in counts too, so that a turn ends whatever there is to find. One
        session is open at a time; where several wait, the next turn is another's.

        Returns:
            The bytes read.
        """
        read_bytes = cost_bytes = 0
        while self._wanted and cost_bytes < byte_count:
            place = self._wanted.take()
            if place.session_hash != self._reader_hash:
                cost_bytes += _OPENING_COST_BYTES
            brought_bytes = self._try_to_bring_in(place)
            read_bytes += brought_bytes
            cost_bytes += max(brought_bytes, _LEAST_COST_BYTES)
        self._wanted.pass_on()
        if self._wanted.session != self._reader_hash:
            self.close()  # open files would keep a deleted session's disk
        return read_bytes

    def scrub(self, byte_count: int) -> None:
        """Look at so many bytes of what is held, where the last turn ended; tell of damage."""
        for _ in range(self._arena.shape.slot_count):
            seen_bytes, damaged = self._arena.verify(self._next_slot)
            self._next_slot = (self._next_slot + 1) % self._arena.shape.slot_count
            byte_count -= seen_bytes
            if damaged is not None:
                logger.error(
                    "slice in the RAM tier was damaged, the disk has it",
                    extra={
                        "session": self._name(damaged.session_hash),
                        "unit": damaged.unit_index,
                        "layer": damaged.layer,
                        "damaged_count": self._arena.damaged_count,
                    },
                )
            if byte_count <= 0:
                return

    def collapse(self, byte_count: int) -> None:
        """Put huge pages behind so many bytes more, where the kernel has them."""
        if not self._collapses:
            return
        try:
            self._arena.collapse(byte_count)
        except OSError as error:
            self._collapses = False
            logger.info("the RAM tier stays in small pages", extra={"reason": str(error)})

    def close(self) -> None:
        """Close the files that are open."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._reader_hash = None

    def _try_to_bring_in(self, place: Place) -> int:
        """Bring in a slice; pass over it, and others that must fail as it does, where that fails.

        Returns:
            The bytes read.
        """
        try:
            reader = self._open(place.session_hash)
            snapshot = reader.snapshot() if reader is not None else None
        except (KVStoreError, OSError) as error:
            logger.debug("session cannot be looked at", extra={"reason": str(error)})
            reader = snapshot = None
        if reader is None or snapshot is None:
            self.close()
            self._wanted.forget(place.session_hash)
            return 0
        try:
            return self._bring_in(place, reader, snapshot)
        except UnitDroppedError as error:
            self._wanted.forget(place.session_hash, before_unit=error.first_unit)
        except (KVStoreError, OSError) as error:
            logger.debug("slice cannot be brought into memory", extra={"reason": str(error)})
        return 0

    def _bring_in(self, place: Place, reader: SessionReader, snapshot: Snapshot) -> int:
        held = self._arena.checksum_at(place)
        if held is not None and held == reader.stored_checksum(
            snapshot, place.unit_index, place.layer
        ):
            return 0
        stored = reader.stored_slice(snapshot, place.unit_index, place.layer)
        if stored is None:
            return 0
        data, checksum = stored
        self._arena.take(SliceKey(*place, checksum), data)
        return len(data)

    def _open(self, hash_: int) -> SessionReader | None:
        """The reader of a session, in place of the last one's; None: there is no such session."""
        if hash_ != self._reader_hash:
            self.close()
            name = self._name(hash_)
            if name is None:
                return None
            self._reader = SessionReader.open(self._root, name, open_files=self._open_files)
            self._reader_hash = hash_
        return self._reader

    def _count_read(self, now_s: float) -> None:
        """Count the rings, and the key indexes that questions read; a push claims its own."""
        self._asked_s = {
            hash_: at_s for hash_, at_s in self._asked_s.items() if now_s - at_s < _ASKED_FOR_S
        }
        read_bytes = sum(map(self._index_bytes, self._asked_s))
        fits = self._arena.lend(read_bytes + self._traces.byte_count)
        if not fits and not self._over:
            logger.warning(
                "key indexes of the sessions asked about take more than the RAM budget has left",
                extra={"ram_budget_bytes": self._arena.budget_bytes},
            )
        self._over = not fits

    def _index_bytes(self, hash_: int) -> int:
        name = self._name(hash_)
        if name is None or self._arena.is_pushed(hash_):
            return 0
        try:
            return (session_folder(self._root, name) / INDEX_NAME).stat().st_size
        except FileNotFoundError:
            return 0

    def _name(self, hash_: int) -> str | None:
        """The session of a hash; None: there is none, or none yet at the last look."""
        if hash_ not in self._names and not self._listed:
            self._listed = True
            names = stored_session_names(self._root)
            self._names = {session_hash(name): name for name in names}
        return self._names.get(hash_)


def _places(records: np.ndarray[Any, Any]) -> list[Place]:
    columns = (records[:, SESSION], records[:, UNIT], layers_of(records))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [Place(*row) for row in rows]
