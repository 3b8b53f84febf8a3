"""What is remembered of sessions, counted anew only when something has changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from kvstore.diskuse import used_bytes
from kvstore.errors import SessionNotFoundError
from kvstore.glance import Glance, glance
from kvstore.paths import session_folder
from kvstore.reader import SessionReader

_KEPT_COUNT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """What is remembered of a session. Media times in seconds."""

    visible_unit_count: int
    durable_unit_count: int
    first_pts_s: float | None
    last_visible_pts_s: float | None
    last_durable_pts_s: float | None
    token_count: int
    disk_bytes: int
    gap_count: int
    dropped_unit_count: int
    """Not in the other counts."""
    drop_fraction: float
    """Mean over the units."""


class StatsReader:
    """Counts what sessions hold. Thread-safe; blocks on I/O.

    Counting reads every unit's row. What was counted stays while the session's CTL page says the
    same, so a list costs a look at one page for each session that nobody pushes to.
    """

    def __init__(self, root: Path) -> None:
        """`root` is the store's folder."""
        self._root = root
        self._kept: OrderedDict[str, tuple[tuple[float, Glance], SessionStats]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, session_id: str, created_unix_s: float) -> SessionStats:
        """Returns what is remembered of a session now; `created_unix_s` tells it from a namesake.

        Raises:
            KVStoreError: there is no such session, or it is damaged.
        """
        seen = glance(self._root, session_id)
        if seen is None:
            return self._count(session_id)
        mark = (created_unix_s, seen)
        with self._lock:
            kept = self._kept.get(session_id)
        if kept is not None and kept[0] == mark:
            # Their disk space may change with the same units: a writer reserves it in advance.
            return replace(kept[1], disk_bytes=self._disk_bytes(session_id))
        stats = self._count(session_id)
        if glance(self._root, session_id) != seen:
            return stats  # counted while it changed: true, but of neither mark
        with self._lock:
            self._kept[session_id] = (mark, stats)
            self._kept.move_to_end(session_id)
            if len(self._kept) > _KEPT_COUNT:
                self._kept.popitem(last=False)
        return stats

    def _count(self, session_id: str) -> SessionStats:
        reader = SessionReader.open(self._root, session_id)
        try:
            snapshot = reader.snapshot()
        finally:
            reader.close()
        last_pts_s, durable_count = snapshot.last_pts_s, snapshot.durable_unit_count
        first_unit = snapshot.first_unit
        held_count = snapshot.unit_count - first_unit
        return SessionStats(
            visible_unit_count=held_count,
            durable_unit_count=max(durable_count - first_unit, 0),
            first_pts_s=float(snapshot.first_pts_s[first_unit]) if held_count else None,
            last_visible_pts_s=float(last_pts_s[-1]) if held_count else None,
            last_durable_pts_s=(
                float(last_pts_s[durable_count - 1]) if durable_count > first_unit else None
            ),
            token_count=int(snapshot.token_counts[first_unit:].sum()),
            disk_bytes=self._disk_bytes(session_id),
            gap_count=int(snapshot.gaps_before[first_unit:].sum()),
            dropped_unit_count=first_unit,
            drop_fraction=float(snapshot.drop_fractions[first_unit:].mean()) if held_count else 0.0,
        )

    def _disk_bytes(self, session_id: str) -> int:
        folder = session_folder(self._root, session_id)
        total = used_bytes(folder)
        if not folder.is_dir():
            raise SessionNotFoundError(session_id)
        return total
