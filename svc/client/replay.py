"""Holds what was sent and is not durable yet, for sources that cannot be read again."""

from __future__ import annotations

from collections import deque

from svc.video.frames import ChunkItem, Item, PacketItem


def starts_here(item: Item) -> bool:
    """Tells whether decoding can start at the item."""
    if isinstance(item, PacketItem):
        return item.key_frame
    return not isinstance(item, ChunkItem)


def pts_s_of(item: Item) -> float | None:
    """Returns the item's presentation time; chunks of a container have none."""
    return None if isinstance(item, ChunkItem) else item.pts_s


class ReplayBuffer:
    """The sent items from the last key frame at or before the durable time on.

    Bounded in bytes: beyond that the oldest go, up to the next key frame. Chunks of a container
    can only be sent again from the first; once one of them is gone nothing can be replayed.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes must be >= 1, got {limit_bytes}")
        self._limit_bytes = limit_bytes
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._lost_s: tuple[float, float] | None = None  # first and last time
        self.chunks_lost = False

    def add(self, item: Item) -> None:
        """Holds an item that is about to be sent."""
        if self.chunks_lost or (
            not self._items and isinstance(item, PacketItem) and not item.key_frame
        ):
            self._lose(item)  # what it builds on is gone already
            return
        self._items.append(item)
        self._bytes += len(item.data)
        if self._bytes > self._limit_bytes:
            self._drop_oldest()

    def trim(self, durable_pts_s: float) -> None:
        """Lets go of what a resume from the durable time does not need."""
        keep_from = 0
        for index, item in enumerate(self._items):
            time_s = pts_s_of(item)
            if time_s is not None and time_s <= durable_pts_s and starts_here(item):
                keep_from = index
        for _ in range(keep_from):
            self._take_oldest()

    def held(self) -> tuple[Item, ...]:
        """Returns what is to be sent again, in order."""
        return tuple(self._items)

    def gap_s(self, durable_pts_s: float | None) -> tuple[float, float] | None:
        """Returns start and end of what a resume from the durable time will miss, if anything."""
        if self._lost_s is None:
            return None
        first_s, last_s = self._lost_s
        if durable_pts_s is not None:
            if last_s <= durable_pts_s:
                return None
            first_s = max(first_s, durable_pts_s)
        end_s = pts_s_of(self._items[0]) if self._items else None
        return first_s, last_s if end_s is None else end_s

    def _drop_oldest(self) -> None:
        while self._items and (self._bytes > self._limit_bytes or not starts_here(self._items[0])):
            self._lose(self._take_oldest())

    def _take_oldest(self) -> Item:
        item = self._items.popleft()
        self._bytes -= len(item.data)
        return item

    def _lose(self, item: Item) -> None:
        time_s = pts_s_of(item)
        if time_s is None:
            self.chunks_lost = True
        elif self._lost_s is None:
            self._lost_s = (time_s, time_s)
        else:
            self._lost_s = (min(self._lost_s[0], time_s), max(self._lost_s[1], time_s))
