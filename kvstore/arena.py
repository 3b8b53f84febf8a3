"""The owner's side of the RAM tier: slices of units that left the hot tail, in shared memory.

One process per store root writes it, readers of all processes search and copy without a lock and
without a write (`kvstore/arenaview.py`). What it holds is durable on disk: leaving it loses
nothing. The bytes are written with `pwrite` and read with `preadv`, never through a mapping: memory
that was given back reads as zeros then, where a mapping would take it anew, or end the process.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.arenafile import arena_folder, create_arena_file
from kvstore.arenalayout import (
    ARENA_MAGIC,
    ARENA_VERSION,
    CHECKSUM,
    GENERATION,
    LAYER,
    LENGTH,
    MAGIC_WORD,
    SESSION,
    SLOT_BYTES_WORD,
    SLOT_MASK,
    SLOTS_WORD,
    UNIT,
    VERSION_WORD,
    ArenaShape,
    SliceKey,
    largest_shape,
)
from kvstore.diskio import DiskIO
from kvstore.errors import StoreFullError

logger = logging.getLogger(__name__)


class Arena:
    """Slots in shared memory under a budget that hot tails share. Safe to use from many threads.

    A hot tail claims its bytes first; the arena has what is left, and shrinks and grows with it.
    """

    def __init__(
        self, fd: int, path: Path, shape: ArenaShape, *, budget_bytes: int, room_bytes: int
    ) -> None:
        """Internal: use `create`."""
        self._fd = fd
        self.path = path
        self.shape = shape
        self.budget_bytes = budget_bytes
        """Of the arena's file and all hot tails together."""
        self._room_bytes = room_bytes
        self._map = mmap.mmap(fd, shape.used_bytes(shape.slot_count), flags=mmap.MAP_SHARED)
        self._words = memoryview(self._map)[: shape.data_start].cast("Q")
        self._lock = threading.Lock()
        self._claimed_bytes = 0
        self._active_count = shape.slot_count
        self._free = list(range(shape.slot_count - 1, -1, -1))
        self._held: OrderedDict[int, SliceKey] = OrderedDict()  # by slot, the oldest first
        self._closed = False
        for slot in range(shape.slot_count):
            self._words[shape.slot_word(slot) + GENERATION] = 1
        self._words[SLOTS_WORD], self._words[SLOT_BYTES_WORD] = shape.slot_count, shape.slot_bytes
        self._words[VERSION_WORD] = ARENA_VERSION
        self._words[MAGIC_WORD] = ARENA_MAGIC

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        budget_bytes: int,
        slot_bytes: int,
        shm_dir: Path | None = None,
        io: DiskIO | None = None,
    ) -> Arena:
        """Make the arena of a store's root, with all its memory allocated.

        Where shared memory has less room than the budget, arena and hot tails there share what it
        has but for an eighth, and a warning says so.

        Args:
            budget_bytes: of the arena and the hot tails together.
            slot_bytes: the longest slice to keep; longer ones are left to the disk.

        Raises:
            OSError: the folder does not exist, or lost its room meanwhile.
        """
        io = io or DiskIO()
        folder = arena_folder(shm_dir)
        free_bytes = io.free_bytes(folder)
        room_bytes = min(budget_bytes, free_bytes * 7 // 8)
        if room_bytes < budget_bytes:
            logger.warning(
                "shared memory has less room than the budget of the RAM tier, taking what fits",
                extra={
                    "shm_dir": str(folder),
                    "ram_budget_bytes": budget_bytes,
                    "free_bytes": free_bytes,
                    "taken_bytes": room_bytes,
                },
            )
        shape = largest_shape(room_bytes, slot_bytes)
        size = shape.used_bytes(shape.slot_count)
        fd, path = create_arena_file(root, size=size, shm_dir=shm_dir, io=io)
        return cls(fd, path, shape, budget_bytes=budget_bytes, room_bytes=room_bytes)

    @property
    def file_bytes(self) -> int:
        """Memory that the file takes now."""
        return self.shape.used_bytes(self._active_count)

    @property
    def slice_count(self) -> int:
        """Slices that are held now."""
        return len(self._held)

    def keep(
        self, session_hash: int, unit_index: int, extents: Iterable[Any], checksums: Iterable[int]
    ) -> None:
        """Take a unit: its encoded (extent bytes,) uint8 slice of each layer, and their XXH3-64.

        The slices that were taken first leave for it.
        """
        with self._lock:
            for layer, (extent, checksum) in enumerate(zip(extents, checksums, strict=True)):
                self._put(SliceKey(session_hash, unit_index, layer, int(checksum)), extent)

    def forget(self, session_hash: int) -> None:
        """Let go of a session that was deleted."""
        with self._lock:
            for slot in [s for s, key in self._held.items() if key.session_hash == session_hash]:
                self._empty(slot)
                self._free.append(slot)

    def claim(self, byte_count: int) -> None:
        """Give up memory for a hot tail.

        Raises:
            StoreFullError: the budget does not allow it, even without a single slice here.
        """
        with self._lock:
            free_bytes = self.budget_bytes - self._claimed_bytes
            if free_bytes - byte_count < self.shape.data_start:
                raise StoreFullError(
                    self.path.parent, byte_count, free_bytes, self.shape.data_start
                )
            self._claimed_bytes += byte_count
            self._shrink(min(self._fitting(), self._active_count))

    def release(self, byte_count: int) -> None:
        """Take back the memory of a hot tail that is gone."""
        with self._lock:
            self._claimed_bytes -= byte_count
            if not self._closed:
                self._grow(self._fitting())

    def close(self) -> None:
        """Remove the file. Readers that have it open may read on, and let go of it soon."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._held.clear()
            self._free.clear()
            self.path.unlink(missing_ok=True)
            self._words.release()
            self._map.close()
            os.close(self._fd)

    def _fitting(self) -> int:
        return self.shape.fitting(self._room_bytes - self._claimed_bytes)

    def _put(self, key: SliceKey, extent: np.ndarray[Any, Any]) -> None:
        if self._closed or extent.nbytes > self.shape.slot_bytes or not self._active_count:
            return
        bucket = self.shape.bucket_words(key.hash())
        entry_word = self._entry_word(bucket, key)
        if entry_word is None:
            return
        slot = self._take_slot()
        if slot is None:
            return
        word = self.shape.slot_word(slot)
        self._words[word + SESSION], self._words[word + UNIT] = key.session_hash, key.unit_index
        self._words[word + LAYER], self._words[word + CHECKSUM] = key.layer, key.checksum
        self._words[word + LENGTH] = extent.nbytes
        written = os.pwrite(self._fd, extent.data, self.shape.slot_offset(slot))
        if written != extent.nbytes:
            self._free.append(slot)
            raise OSError(errno.EIO, f"{written} of {extent.nbytes} bytes written", str(self.path))
        self._words[word + GENERATION] += 1
        self._words[entry_word] = key.hash() & ~SLOT_MASK | slot + 1
        self._held[slot] = key

    def _entry_word(self, bucket: range, key: SliceKey) -> int | None:
        """A word of the bucket for this key's entry, freed if need be; None when it is there."""
        empty = None
        for word in bucket:
            entry = self._words[word]
            if not entry:
                empty = word
            elif self._held[(entry & SLOT_MASK) - 1] == key:
                return None
        if empty is None:
            empty = bucket[0]
            slot = (self._words[empty] & SLOT_MASK) - 1
            self._empty(slot)
            self._free.append(slot)
        return empty

    def _take_slot(self) -> int | None:
        """A slot with an odd generation that nothing points to; the oldest one leaves for it."""
        if self._free:
            return self._free.pop()
        slot = next(iter(self._held), None)
        if slot is not None:
            self._empty(slot)
        return slot

    def _empty(self, slot: int) -> None:
        key = self._held.pop(slot)
        self._words[self.shape.slot_word(slot) + GENERATION] += 1
        wanted = key.hash() & ~SLOT_MASK | slot + 1
        for word in self.shape.bucket_words(key.hash()):
            if self._words[word] == wanted:
                self._words[word] = 0

    def _shrink(self, active_count: int) -> None:
        if active_count == self._active_count or self._closed:
            return
        for slot in [slot for slot in self._held if slot >= active_count]:
            self._empty(slot)
        self._free = [slot for slot in self._free if slot < active_count]
        start, stop = (self.shape.used_bytes(count) for count in (active_count, self._active_count))
        self._active_count = active_count
        if stop > start:
            self._map.madvise(mmap.MADV_REMOVE, start, stop - start)

    def _grow(self, active_count: int) -> None:
        if active_count <= self._active_count:
            return
        start, stop = (self.shape.used_bytes(count) for count in (self._active_count, active_count))
        try:
            if stop > start:
                os.posix_fallocate(self._fd, start, stop - start)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            logger.warning(
                "shared memory has no room for the RAM tier to grow into",
                extra={"path": str(self.path), "needed_bytes": stop - start},
            )
            return
        self._free.extend(range(active_count - 1, self._active_count - 1, -1))
        self._active_count = active_count
