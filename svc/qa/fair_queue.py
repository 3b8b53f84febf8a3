"""Questions that wait for a place beside those being answered, sessions served in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out within a session; the sessions take turns. Not thread-safe.

    A session that asks a hundred questions delays one question of another session by one turn.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()

    def push(self, session_id: str, item: T) -> None:
        """Puts an item at the end of its session's line; a new line gets the last turn."""
        self._lines.setdefault(session_id, deque()).append(item)

    def pop(self) -> T | None:
        """Takes the first item of the line whose turn it is; that line is next to be last."""
        if not self._lines:
            return None
        session_id, line = next(iter(self._lines.items()))
        item = line.popleft()
        self._lines.move_to_end(session_id)
        if not line:
            del self._lines[session_id]
        return item

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))
