"""The key index of a session that is written, in the RAM tier's budget.

All of the file counts, for as long as a writer has the session: it maps the whole of it, and
questions read all of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvstore.arena import Arena
from retrieval.index_file import Room


class IndexMemory:
    """What one writer's index claims of the budget. Used from one thread at a time."""

    def __init__(self, arena: Arena | None, path: Path, room: Room) -> None:
        """Claim what lies there already.

        Args:
            arena: has the budget; None: there is none.
            path: of the index, which need not exist.
            room: is asked for disk, beside.

        Raises:
            StoreFullError: the budget does not allow it.
        """
        self._arena = arena
        self._disk_room = room
        self._claimed_bytes = 0
        self._claim(path.stat().st_size if path.exists() else 0)

    @contextmanager
    def room(self, byte_count: int) -> Iterator[None]:
        """Room to grow, for `KeyIndexWriter.grow_within`.

        Raises (on entering):
            StoreFullError: a budget or the disk does not allow it.
        """
        self._claim(byte_count)
        try:
            with self._disk_room(byte_count):
                yield
        except BaseException:
            self._claim(-byte_count)
            raise

    def settle(self, byte_count: int) -> None:
        """The index takes so many bytes, as it turned out: it was cut short or made anew.

        Raises:
            StoreFullError: the budget does not allow it.
        """
        self._claim(byte_count - self._claimed_bytes)

    def close(self) -> None:
        """Give it back: the index is closed."""
        self._claim(-self._claimed_bytes)

    def _claim(self, byte_count: int) -> None:
        if self._arena is None:
            return
        if byte_count > 0:
            self._arena.claim(byte_count)
        elif byte_count < 0:
            self._arena.release(-byte_count)
        self._claimed_bytes += byte_count
