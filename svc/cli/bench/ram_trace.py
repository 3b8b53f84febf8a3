"""What happened to a store's slices, in order: the record that eviction policies are judged by.

An event is a row: what, session, unit, layer, question. `LEFT_HOT`: a unit left the hot tail, in
all layers. `READ`: a question read a slice that was in no hot tail. `ENDED`: a push ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.errors import KVStoreError
from kvstore.geometry import Tier
from kvstore.paths import session_hash, stored_session_names
from kvstore.reader import SessionReader
from kvstore.readtrace import QUESTION, SESSION, UNIT, TraceReader, layers_of, read_from

LEFT_HOT, READ, ENDED = 0, 1, 2
EVENT = np.dtype(
    [("what", "u1"), ("session", "u2"), ("unit", "u4"), ("layer", "u1"), ("question", "u4")]
)
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Events in order, and how many layers a unit has."""

    events: np.ndarray[Any, Any]
    """(n,) of EVENT."""
    layer_count: int

    def save(self, path: Path) -> None:
        """Writes a compressed file, column by column."""
        columns: dict[str, Any] = {name: self.events[name] for name in EVENT.names or ()}
        np.savez_compressed(path, layer_count=np.int64(self.layer_count), **columns)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Reads what `save` wrote."""
        with np.load(path) as file:
            events = np.zeros(len(file["what"]), EVENT)
            for name in EVENT.names or ():
                events[name] = file[name]
            return cls(events, int(file["layer_count"]))


class Recorder:
    """Follows a running service by what its readers and writers put into shared memory."""

    def __init__(self, root: Path, *, shm_dir: Path | None = None) -> None:
        """Nothing is read yet."""
        self._root = root
        self._reads = TraceReader(root, shm_dir=shm_dir)
        self._readers: dict[str, SessionReader] = {}
        self._left: dict[str, int] = {}
        self._ended: set[str] = set()
        self._numbers: dict[int, int] = {}
        self._events: list[np.ndarray[Any, Any]] = []
        self._layer_count = 0

    def record(self, stopped: Callable[[], bool]) -> Trace:
        """Follows until it is stopped; what happens between two looks has no order."""
        while not stopped():
            time.sleep(_LOOK_EVERY_S)
            self._look()
        self._look()
        for reader in self._readers.values():
            reader.close()
        return Trace(np.concatenate([np.zeros(0, EVENT), *self._events]), self._layer_count)

    def _look(self) -> None:
        for name in stored_session_names(self._root):
            try:
                self._follow(name)
            except KVStoreError:
                continue  # it is being made or deleted
        records = self._reads.poll()
        records = records[~read_from(records, Tier.HOT)]
        events = np.zeros(len(records), EVENT)
        events["what"] = READ
        events["session"] = [self._number(hash_) for hash_ in records[:, SESSION].tolist()]
        events["unit"], events["layer"] = records[:, UNIT], layers_of(records)
        events["question"] = records[:, QUESTION]
        self._events.append(events)

    def _follow(self, name: str) -> None:
        if name in self._ended:
            return
        if name not in self._readers:
            self._readers[name] = SessionReader.open(self._root, name)
        reader = self._readers[name]
        snapshot = reader.snapshot()
        if reader.geometry is None:
            return
        self._layer_count = reader.geometry.layer_count
        open_ = reader.writer_open
        left = snapshot.hot_tail.floor if open_ and snapshot.hot_tail else snapshot.unit_count
        events = np.zeros(max(0, left - self._left.get(name, 0)) + (not open_), EVENT)
        events["session"] = self._number(session_hash(name))
        events["unit"] = np.arange(len(events)) + self._left.get(name, 0)
        if not open_:
            events["what"][-1] = ENDED
            self._ended.add(name)
        self._left[name] = max(left, self._left.get(name, 0))
        self._events.append(events)

    def _number(self, hash_: int) -> int:
        return self._numbers.setdefault(hash_, len(self._numbers))
