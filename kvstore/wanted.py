"""Slices that the RAM tier is to bring in, session by session: so only one is open at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from kvstore.eviction import Place


class Wanted:
    """At most so many slices. Sessions take turns; within one, what came first is taken first."""

    def __init__(self, most_count: int) -> None:
        """`most_count`: beyond it, the first of the session whose turn it is are forgotten."""
        self._most_count = most_count
        self._sessions: OrderedDict[int, OrderedDict[Place, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Place]:
        return (place for queue in self._sessions.values() for place in queue)

    def add(self, place: Place) -> None:
        """Want a slice; one that is wanted already waits anew."""
        queue = self._sessions.setdefault(place.session_hash, OrderedDict())
        self._count += place not in queue
        queue[place] = None
        queue.move_to_end(place)
        if self._count > self._most_count:
            self.take()

    @property
    def session(self) -> int | None:
        """The hash of the session whose turn it is; None: nothing is wanted."""
        return next(iter(self._sessions), None)

    def take(self) -> Place:
        """The next slice, wanted no more. There is one."""
        hash_, queue = next(iter(self._sessions.items()))
        place, _ = queue.popitem(last=False)
        self._count -= 1
        if not queue:
            del self._sessions[hash_]
        return place

    def pass_on(self) -> None:
        """It is the next session's turn."""
        if self._sessions:
            self._sessions.move_to_end(next(iter(self._sessions)))

    def forget(self, session_hash: int, *, before_unit: int | None = None) -> None:
        """Want nothing more of a session, or of its units before one."""
        queue = self._sessions.pop(session_hash, None)
        if queue is None:
            return
        self._count -= len(queue)
        if before_unit is None:
            return
        kept = OrderedDict.fromkeys(place for place in queue if place.unit_index >= before_unit)
        if kept:
            self._count += len(kept)
            self._sessions[session_hash] = kept
            self._sessions.move_to_end(session_hash, last=False)
