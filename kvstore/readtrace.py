"""What questions read: a small ring in shared memory, written by one process, read by others.

Every process that answers has one, in a file of its own, whose lock it holds. So the owner of the
RAM tier learns what is used, and readers write nothing of the owner's. A record is four words:

    session hash | unit | layer, tier | question serial

The writer announces how far it will write, writes, and then announces that it has. A reader takes
what was written, and looks afterwards how far has been announced: what may have been overwritten
meanwhile it drops and counts. The two counts never turn back.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.diskio import DiskIO
from kvstore.format import PAGE_BYTES
from kvstore.geometry import Tier
from kvstore.paths import session_hash
from kvstore.sharedfile import create_shared_file, shared_files

TRACE_MAGIC = int.from_bytes(b"LBTRACE\1", "little")
RECORD_WORDS = 4
SESSION, UNIT, LAYER_TIER, QUESTION = range(RECORD_WORDS)
DEFAULT_CAPACITY = 1 << 15
"""Records: 18 questions of a 7B model."""
_MAGIC_WORD, _CAPACITY_WORD, _BEGUN_WORD, _WRITTEN_WORD = range(4)
_TIER_SHIFT = 32
_TIERS = list(Tier)


def layers_of(records: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(n,) uint64: the layers of (n, 4) records."""
    layers: np.ndarray[Any, Any] = records[:, LAYER_TIER] & np.uint64((1 << _TIER_SHIFT) - 1)
    return layers


def read_from(records: np.ndarray[Any, Any], tier: Tier) -> np.ndarray[Any, Any]:
    """(n,) bool: which of (n, 4) records tell of slices found in a tier."""
    tiers = records[:, LAYER_TIER] >> np.uint64(_TIER_SHIFT)
    found: np.ndarray[Any, Any] = tiers == _TIERS.index(tier)
    return found


class ReadTrace:
    """The writing end. Safe to use from many threads of the one process that has it."""

    def __init__(self, fd: int, path: Path, capacity: int) -> None:
        """Internal: use `create`."""
        self._fd = fd
        self.path = path
        self._capacity = capacity
        self._lock = threading.Lock()
        self._serials = itertools.count(1)
        self._map = mmap.mmap(fd, _file_bytes(capacity), flags=mmap.MAP_SHARED)
        self._head = np.frombuffer(self._map, np.uint64, PAGE_BYTES // 8)
        self._records = np.frombuffer(self._map, np.uint64, offset=PAGE_BYTES)
        self._records = self._records.reshape(capacity, RECORD_WORDS)
        self._count = 0
        self._head[_CAPACITY_WORD] = capacity
        self._head[_MAGIC_WORD] = TRACE_MAGIC

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        shm_dir: Path | None = None,
        capacity: int = DEFAULT_CAPACITY,
        io: DiskIO | None = None,
    ) -> ReadTrace:
        """Make the ring of this process.

        Raises:
            OSError: the folder or the root does not exist, or has no room.
        """
        fd, path = create_shared_file(
            root, "use", size=_file_bytes(capacity), shm_dir=shm_dir, io=io or DiskIO()
        )
        return cls(fd, path, capacity)

    def question(self, session_id: str) -> QuestionTrace:
        """Begin the trace of one question."""
        return QuestionTrace(self, session_hash(session_id), next(self._serials))

    def write(self, records: np.ndarray[Any, Any]) -> None:
        """Append (n, 4) uint64 records; the last of them, when there are more than fit."""
        records = records[-self._capacity :]
        with self._lock:
            count = self._count + len(records)
            self._head[_BEGUN_WORD] = count
            start = self._count % self._capacity
            fitting = min(len(records), self._capacity - start)
            self._records[start : start + fitting] = records[:fitting]
            self._records[: len(records) - fitting] = records[fitting:]
            self._count = count
            self._head[_WRITTEN_WORD] = count

    def close(self) -> None:
        """Remove the ring."""
        with self._lock:
            self.path.unlink(missing_ok=True)
            os.close(self._fd)


class QuestionTrace:
    """Notes what one question reads."""

    def __init__(self, trace: ReadTrace, session_hash: int, serial: int) -> None:
        """Internal: use `ReadTrace.question`."""
        self._trace = trace
        self._session_hash = session_hash
        self._serial = serial

    def note(self, layer: int, units: Sequence[int], tiers: Sequence[Tier]) -> None:
        """Units of a layer were read, from these tiers."""
        records = np.empty((len(units), RECORD_WORDS), np.uint64)
        records[:, SESSION] = self._session_hash
        records[:, UNIT] = units
        records[:, LAYER_TIER] = [layer | _TIERS.index(tier) << _TIER_SHIFT for tier in tiers]
        records[:, QUESTION] = self._serial
        self._trace.write(records)


class TraceView:
    """The reading end of one ring, from wherever it stands; several may read it."""

    def __init__(self, path: Path) -> None:
        """Open a ring.

        Raises:
            FileNotFoundError: it is gone.
            ValueError: it is none of this version, or not ready yet.
        """
        self.path = path
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            if size < PAGE_BYTES:
                raise ValueError(f"{path} is not ready")
            mapping = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self._head = np.frombuffer(mapping, np.uint64, PAGE_BYTES // 8)
        capacity = int(self._head[_CAPACITY_WORD])
        if self._head[_MAGIC_WORD] != TRACE_MAGIC or size < _file_bytes(capacity):
            raise ValueError(f"{path} is no trace of this version, or not ready")
        self._capacity = capacity
        self._records = np.frombuffer(mapping, np.uint64, capacity * RECORD_WORDS, PAGE_BYTES)
        self._records = self._records.reshape(capacity, RECORD_WORDS)
        self._taken = 0
        self.lost_count = 0
        """Records that were overwritten before they were taken."""

    @property
    def byte_count(self) -> int:
        """Memory that it takes."""
        return _file_bytes(self._capacity)

    def poll(self) -> np.ndarray[Any, Any]:
        """Take what was written since the last time: (n, 4) uint64, the oldest first."""
        written = int(self._head[_WRITTEN_WORD])
        first = max(self._taken, written - self._capacity)
        places = np.arange(first, written) % self._capacity
        records = self._records[places]
        # Written over meanwhile, or being written over.
        whole = max(first, self._begun() - self._capacity)
        self.lost_count += min(whole, written) - self._taken
        self._taken = written
        return records[min(whole, written) - first :]

    def _begun(self) -> int:
        return int(self._head[_BEGUN_WORD])


class TraceReader:
    """All rings of a root, as they come and go."""

    def __init__(self, root: Path, *, shm_dir: Path | None = None) -> None:
        """Nothing is opened yet."""
        self._root = root
        self._shm_dir = shm_dir
        self._views: dict[tuple[Path, int], TraceView] = {}

    @property
    def byte_count(self) -> int:
        """Memory that the rings of the last poll take."""
        return sum(view.byte_count for view in self._views.values())

    def poll(self) -> np.ndarray[Any, Any]:
        """Take what all of them wrote since the last time: (n, 4) uint64."""
        found: dict[tuple[Path, int], TraceView] = {}
        for path in shared_files(self._root, "use", shm_dir=self._shm_dir):
            try:
                name = path, path.stat().st_ino  # a process id may come again
                found[name] = self._views.get(name) or TraceView(path)
            except (FileNotFoundError, ValueError):
                continue  # it is being made or removed
        gone = [view for name, view in self._views.items() if name not in found]
        self._views = found
        taken = [view.poll() for view in (*gone, *found.values())]
        return np.concatenate([np.empty((0, RECORD_WORDS), np.uint64), *taken])


def _file_bytes(capacity: int) -> int:
    return PAGE_BYTES + capacity * RECORD_WORDS * 8
