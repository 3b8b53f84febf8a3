"""What a process holds in memory, by the kernel's accounts."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

_SHARED_FOLDER = "/dev/shm/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes of one process."""

    anonymous: int
    """Its own: heap, stacks."""
    index_mapped: int
    """Pages of index files: shared, and given back by the kernel when it needs them."""
    hot_mapped: int
    """Pages of hot tails, which lie in shared memory."""
    ram_mapped: int
    """Pages of the RAM tier, which lie in shared memory."""


def read_memory(pid: int) -> Memory:
    """Returns what a process holds now.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    anonymous = index = hot = ram = 0
    for mapping in psutil.Process(pid).memory_maps(grouped=True):
        anonymous += mapping.anonymous
        if mapping.path.endswith("index.rows"):
            index += mapping.rss
        elif mapping.path.startswith(_SHARED_FOLDER):
            # A file that was deleted and is still mapped has a note behind its name.
            if ".ram" in mapping.path:
                ram += mapping.rss
            else:
                hot += mapping.rss
    return Memory(anonymous=anonymous, index_mapped=index, hot_mapped=hot, ram_mapped=ram)
