"""S3-FIFO: three queues, of which the small one is a probation that most slices do not pass.

Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues are all you need for cache eviction. SOSP 2023.
What is read once, as by a question that looks at everything, goes through the small queue and
disturbs nothing else. What comes again soon after it left, which a ghost entry tells, or is used
while it is there, belongs to the main queue.
"""

from __future__ import annotations

from collections import OrderedDict

from kvstore.eviction import Place
from kvstore.ghosttable import GhostTable

_SMALL_SHARE = 10
"""The small queue has one in so many; the paper's."""
_MOST_USES = 3


class S3Fifo:
    """An `EvictionPolicy`. The last slices that left, as many as fit, are its ghosts."""

    def __init__(self) -> None:
        self._small: OrderedDict[Place, int] = OrderedDict()  # with: uses since it came
        self._main: OrderedDict[Place, int] = OrderedDict()
        self._ghosts = GhostTable()
        self._capacity = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    @property
    def ghost_count(self) -> int:
        """Slices that left and are remembered; looks at all."""
        return len(self._ghosts)

    def resize(self, capacity: int) -> None:
        """So many slices fit, and are remembered."""
        self._capacity = capacity
        self._ghosts.resize(capacity)

    def insert(self, place: Place) -> None:
        """On probation, unless it left only lately."""
        if self._ghosts.take(place):
            self._main[place] = 0
        else:
            self._small[place] = 0

    def touch(self, place: Place) -> None:
        """Count a use."""
        queue = self._small if place in self._small else self._main
        queue[place] = min(queue[place] + 1, _MOST_USES)

    def evict(self) -> Place:
        """The oldest on probation that nobody used; where there are few of them, of the others."""
        while self._small and (len(self._small) * _SMALL_SHARE >= self._capacity or not self._main):
            place, uses = self._small.popitem(last=False)
            if not uses:
                self._ghosts.add(place)
                return place
            self._main[place] = 0
        while True:
            place, uses = self._main.popitem(last=False)
            if not uses:
                return place
            self._main[place] = uses - 1

    def remove(self, place: Place) -> None:
        """Take it out; it leaves no ghost."""
        del (self._small if place in self._small else self._main)[place]
