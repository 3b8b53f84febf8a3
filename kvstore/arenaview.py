"""A reader's side of the RAM tier: it searches and copies without a lock and writes nothing.

So a reader that is killed, wherever it was, leaves nothing behind, and questions cannot disturb
what is kept. Slots are copied from a mapping that stays: that is as fast as memory.

Memory that the owner gave back would be taken anew by a touch, so a slot whose generation is not
the one that was found is not touched. The file is never made shorter: no touch ends the process.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvstore.arenalayout import (
    ARENA_MAGIC,
    ARENA_VERSION,
    BUCKET_WORDS,
    CHECKSUM,
    FIRST_SLOT_WORD,
    GENERATION,
    LENGTH,
    MAGIC_WORD,
    SLOT_BYTES_WORD,
    SLOT_MASK,
    SLOT_WORDS,
    SLOTS_WORD,
    UNIT,
    VERSION_WORD,
    ArenaShape,
    key_hashes,
)
from kvstore.format import PAGE_BYTES
from kvstore.hugemap import HugeMap

_ODD = np.uint64(1)
_SLOT_MASK = np.uint64(SLOT_MASK)
_HASH_MASK = np.uint64((1 << 64) - 1 - SLOT_MASK)


class Found(NamedTuple):
    """Where slices were when they were looked for: (n,) arrays."""

    slots: np.ndarray[Any, Any]
    """int64; -1: not here."""
    generations: np.ndarray[Any, Any]
    """uint64"""


class ArenaView:
    """One arena, read-only; its mapping goes when nobody uses the view any more."""

    def __init__(self, path: Path) -> None:
        """Open an arena.

        Raises:
            FileNotFoundError: it is gone.
            ValueError: it is not one of this version, or not ready yet.
        """
        self.path = path
        self._fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)
        with mmap.mmap(self._fd, PAGE_BYTES, access=mmap.ACCESS_READ) as page:
            head = np.frombuffer(page[:PAGE_BYTES], np.uint64)
        if (head[MAGIC_WORD], head[VERSION_WORD]) != (ARENA_MAGIC, ARENA_VERSION):
            raise ValueError(f"{path} is no arena of version {ARENA_VERSION}")
        self.shape = shape = ArenaShape(int(head[SLOTS_WORD]), int(head[SLOT_BYTES_WORD]))
        size = shape.used_bytes(shape.slot_count)
        if os.fstat(self._fd).st_size < size:
            raise ValueError(f"{path} is shorter than its {size} bytes")
        data = HugeMap(self._fd, size, writable=False).data
        words = data[: shape.data_start].view(np.uint64)
        headers = words[FIRST_SLOT_WORD : FIRST_SLOT_WORD + shape.slot_count * SLOT_WORDS]
        directory = words[shape.directory_word :][: shape.bucket_count * BUCKET_WORDS]
        self._bucket_count = np.uint64(shape.bucket_count)
        self._headers = headers.reshape(-1, SLOT_WORDS)
        self._directory = directory.reshape(-1, BUCKET_WORDS)
        self._slots = data[shape.slot_offset(0) :]
        used = self._slots[: shape.slot_count * shape.stride_bytes]
        self._halves = used.reshape(-1, shape.stride_bytes // 2)

    @property
    def removed(self) -> bool:
        """Whether its owner closed it, or died and was cleaned up after."""
        return os.fstat(self._fd).st_nlink == 0

    def find(
        self,
        session_hash: int,
        layer: int,
        units: np.ndarray[Any, Any],
        checksums: np.ndarray[Any, Any],
        byte_counts: np.ndarray[Any, Any],
    ) -> Found:
        """Look for slices of one layer: (n,) uint64 units and checksums, (n,) int64 lengths.

        What is found may leave at any time: `copy` looks again.
        """
        if not self.shape.slot_count:
            return Found(np.full(len(units), -1), np.zeros(len(units), np.uint64))
        hashes = key_hashes(session_hash, layer, units, checksums)
        entries = self._directory[hashes % self._bucket_count]
        same = ((entries ^ hashes[:, None]) & _HASH_MASK == 0) & (entries & _SLOT_MASK != 0)
        entry = entries[np.arange(len(units)), same.argmax(1)]
        slots = (entry & _SLOT_MASK).astype(np.int64) - 1
        slots[slots >= self.shape.slot_count] = -1
        # Before the key: a slot that was filled anew in between has another one afterwards.
        generations = self._headers[slots, GENERATION]
        rows = self._headers[slots]
        # Equal checksums are equal bytes: entry and unit tell whose they are, more is not needed.
        here = (slots >= 0) & (generations & _ODD == 0)
        for word, value in ((CHECKSUM, checksums), (UNIT, units), (LENGTH, byte_counts)):
            here &= rows[:, word] == value
        slots[~here] = -1
        return Found(slots, generations)

    def copy(self, slot: int, generation: int, *parts: np.ndarray[Any, Any]) -> bool:
        """Copy a slice into flat uint8 arrays of its length; False when it left meanwhile.

        The bytes are those that the owner put there, and verified; that memory kept them is for
        the owner to look after (`kvstore/arenakeeper.py`).
        """
        if not self._undisturbed(slot, generation):
            return False
        start = slot * self.shape.stride_bytes
        for part in parts:
            stop = start + len(part)
            part[:] = self._slots[start:stop]
            start = stop
        return bool(self._undisturbed(slot, generation))

    def copy_halves(
        self, found: Found, keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """Copy slices that are as long as their slots, halved: (n, half slot) uint8 each.

        Returns:
            (n,) bool: those that were copied. What is in the other rows counts for nothing.
        """
        slots, generations = found
        copied: np.ndarray[Any, Any] = (slots >= 0) & self._undisturbed(slots, generations)
        if copied.any():
            # Rows of slices that are not here take some slice that is: one call copies all.
            rows = 2 * np.where(copied, slots, slots[copied.argmax()])
            np.take(self._halves, rows, axis=0, out=keys, mode="clip")
            np.take(self._halves, rows + 1, axis=0, out=values, mode="clip")
            copied &= self._undisturbed(slots, generations)
        return copied

    def _undisturbed(self, slot: Any, generation: Any) -> Any:
        """Whether slots, and so their keys, are as they were when they had these generations."""
        return self._headers[slot, GENERATION] == generation
