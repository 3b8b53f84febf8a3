"""Which slices of the RAM tier leave when it is full: the seam, and the simple policies behind it.

A policy knows names of slices, never bytes, and nothing of slots. `lookback bench ram` replays
recorded questions through all of them; ARCHITECTURE.md has the table and says which one is used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol


class Place(NamedTuple):
    """Which slice: the keys and values of one unit in one layer."""

    session_hash: int
    unit_index: int
    layer: int


class EvictionPolicy(Protocol):
    """Which slice leaves next. The owner says what is held, what was used, and how much fits.

    Not safe to use from several threads.
    """

    def __len__(self) -> int:
        """How many slices are held."""
        ...

    def resize(self, capacity: int) -> None:
        """So many slices fit from now on; the owner evicts what is too much."""
        ...

    def insert(self, place: Place) -> None:
        """A slice came, that was not held."""
        ...

    def touch(self, place: Place) -> None:
        """A question used a slice that is held."""
        ...

    def evict(self) -> Place:
        """Choose the slice that leaves, and hold it no more. There is one."""
        ...

    def remove(self, place: Place) -> None:
        """A slice that is held left for another reason, such as that its session was deleted."""
        ...


class Fifo:
    """What came first leaves first."""

    def __init__(self) -> None:
        self._queue: OrderedDict[Place, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def resize(self, capacity: int) -> None:
        """It makes no difference."""

    def insert(self, place: Place) -> None:
        """Put it last."""
        self._queue[place] = None

    def touch(self, place: Place) -> None:
        """It makes no difference."""

    def evict(self) -> Place:
        """The first."""
        return self._queue.popitem(last=False)[0]

    def remove(self, place: Place) -> None:
        """Take it out."""
        del self._queue[place]


class Lru(Fifo):
    """What was not used for longest leaves first."""

    def touch(self, place: Place) -> None:
        """Put it last again."""
        self._queue.move_to_end(place)


class FairShare:
    """Each session has a policy of its own; a slice of the session that holds most leaves."""

    def __init__(self, make: Callable[[], EvictionPolicy]) -> None:
        """`make` makes the policy of one session."""
        self._make = make
        self._sessions: dict[int, EvictionPolicy] = {}
        self._count = 0
        self._capacity = 0

    def __len__(self) -> int:
        return self._count

    def resize(self, capacity: int) -> None:
        """Share it out anew."""
        self._capacity = capacity
        for policy in self._sessions.values():
            policy.resize(capacity // len(self._sessions))

    def insert(self, place: Place) -> None:
        """Into its session's."""
        if place.session_hash not in self._sessions:
            self._sessions[place.session_hash] = self._make()
            self.resize(self._capacity)
        self._count += 1
        self._sessions[place.session_hash].insert(place)

    def touch(self, place: Place) -> None:
        """In its session's."""
        self._sessions[place.session_hash].touch(place)

    def evict(self) -> Place:
        """What the session that holds most would give up."""
        place = max(self._sessions.values(), key=len).evict()
        self._left(place.session_hash)
        return place

    def remove(self, place: Place) -> None:
        """From its session's."""
        self._sessions[place.session_hash].remove(place)
        self._left(place.session_hash)

    def _left(self, session_hash: int) -> None:
        self._count -= 1
        if not self._sessions[session_hash]:
            del self._sessions[session_hash]
            if self._sessions:
                self.resize(self._capacity)


class NewestFirst:
    """A guaranteed part: the newest units of each live session, whatever is read meanwhile.

    Live sessions share it evenly. What leaves it goes on under the policy for all the rest.
    """

    def __init__(self, rest: EvictionPolicy, *, guaranteed_fraction: float) -> None:
        """`guaranteed_fraction` of all slices, in [0, 1], are for the newest units."""
        self._rest = rest
        self._fraction = guaranteed_fraction
        self._capacity = 0
        self._live: dict[int, OrderedDict[Place, bool]] = {}  # with: whether it was used

    def __len__(self) -> int:
        return len(self._rest) + sum(map(len, self._live.values()))

    def resize(self, capacity: int) -> None:
        """So many fit in both parts together."""
        self._capacity = capacity
        self._rest.resize(capacity - int(capacity * self._fraction))
        self._trim()

    def insert(self, place: Place) -> None:
        """A slice that was read: into the rest."""
        self._rest.insert(place)

    def insert_newest(self, place: Place) -> None:
        """A slice of the newest unit of a session, which is live until `end`."""
        if place.session_hash not in self._live:
            self._live[place.session_hash] = OrderedDict()
            self._trim()
        queue = self._live[place.session_hash]
        queue[place] = False
        while len(queue) > self._share():
            self._demote(queue)

    def end(self, session_hash: int) -> None:
        """The session is live no more: its units are no better than others."""
        queue = self._live.pop(session_hash, OrderedDict())
        while queue:
            self._demote(queue)

    def touch(self, place: Place) -> None:
        """Remembered of a guaranteed slice until it goes on."""
        queue = self._live.get(place.session_hash)
        if queue is not None and place in queue:
            queue[place] = True
        else:
            self._rest.touch(place)

    def evict(self) -> Place:
        """From the rest, while there is one."""
        if len(self._rest):
            return self._rest.evict()
        return max(self._live.values(), key=len).popitem(last=False)[0]

    def remove(self, place: Place) -> None:
        """From where it is."""
        queue = self._live.get(place.session_hash)
        if queue is not None and place in queue:
            del queue[place]
        else:
            self._rest.remove(place)

    def _share(self) -> int:
        return int(self._capacity * self._fraction) // max(1, len(self._live))

    def _trim(self) -> None:
        for queue in self._live.values():
            while len(queue) > self._share():
                self._demote(queue)

    def _demote(self, queue: OrderedDict[Place, bool]) -> None:
        place, used = queue.popitem(last=False)
        self._rest.insert(place)
        if used:
            self._rest.touch(place)
