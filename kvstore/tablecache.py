"""The unit tables that readers keep in memory: a bounded number of bytes, shared by a process."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict

from kvstore.blockread import Block

TABLE_CACHE_BYTES = 32 << 20
"""What the unit tables of all readers of a process may take: those of 23,000 units of a 7B model,
or 89,000 of the built-in one.
"""
_BYTES_PER_BLOCK = 2304
_BYTES_PER_UNIT = 64

Key = tuple[int, int]
"""A reader's number, and the hash of a block's header."""


class TableCache:
    """Blocks with their tables, the least recently used forgotten first. Used by many threads."""

    def __init__(self, limit_bytes: int = TABLE_CACHE_BYTES) -> None:
        """`limit_bytes`: what is kept takes no more, whatever many readers ask for."""
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Key, Block] = OrderedDict()
        self._held_bytes = 0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def held_bytes(self) -> int:
        """What is kept takes so much."""
        return self._held_bytes

    def number(self) -> int:
        """A number that no other reader has."""
        return next(self._numbers)

    def get(self, key: Key) -> Block | None:
        """A block that is kept."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def put(self, key: Key, block: Block) -> None:
        """Keep a block, and forget others for it; one larger than the limit is not kept."""
        added_bytes = held_bytes(block)
        with self._lock:
            if key in self._blocks or added_bytes > self.limit_bytes:
                return
            self._blocks[key] = block
            self._held_bytes += added_bytes
            while self._held_bytes > self.limit_bytes:
                _, oldest = self._blocks.popitem(last=False)
                self._held_bytes -= held_bytes(oldest)

    def forget(self, number: int) -> None:
        """Let go of all that one reader has here."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == number]:
                self._held_bytes -= held_bytes(self._blocks.pop(key))


def held_bytes(block: Block) -> int:
    """What a block takes in memory, its table and all that is reckoned from it: not less."""
    header = block.header
    return header.table_bytes + _BYTES_PER_UNIT * header.unit_count + _BYTES_PER_BLOCK


PROCESS_TABLES = TableCache()
"""The cache of readers that are given no other."""
