"""The owner's side of the RAM tier: slices that questions may want, in shared memory.

One process per store root writes it, readers of all processes search and copy without a lock and
without a write (`kvstore/arenaview.py`). What it holds is durable on disk: leaving it loses
nothing. Every slice is verified as it comes in.

Readers map the file, so it is never made shorter, and memory that is given back is a hole in it. A
reader that is in the middle of a copy then may take a page of the hole anew: it has a grace to end,
a margin of the budget is left free for it, and `settle` gives back what it took.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

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
from kvstore.eviction import EvictionPolicy, NewestFirst, Place
from kvstore.hugemap import HUGE_PAGE_BYTES, HugeMap
from kvstore.s3fifo import S3Fifo

logger = logging.getLogger(__name__)

GUARANTEED_FRACTION = 1 / 8
"""Share of the slots that newest units of live sessions have for themselves."""
_COPY_GRACE_S = 0.02
"""Hundreds of times what a reader needs for one slice."""
_MARGIN_SLOTS = 8
_LARGEST_MARGIN = 32
"""Eight readers may be in the middle of a copy, but the margin is no more than a 32nd."""


class Arena:
    """Slots in shared memory under a budget that others share. Safe to use from many threads.

    Hot tails and key indexes claim their bytes first; the arena has what is left, and shrinks and
    grows with it.
    """

    def __init__(
        self,
        fd: int,
        path: Path,
        shape: ArenaShape,
        *,
        budget_bytes: int,
        room_bytes: int,
        rest: EvictionPolicy,
    ) -> None:
        """Internal: use `create`."""
        self._fd = fd
        self.path = path
        self.shape = shape
        self.budget_bytes = budget_bytes
        """Of the arena's file, all hot tails and the key indexes in use together."""
        self.damaged_count = 0
        """Slices that memory did not keep as they were."""
        self._room_bytes = room_bytes
        self._map = HugeMap(fd, shape.used_bytes(shape.slot_count), writable=True)
        self._words = self._map.data[: shape.data_start].data.cast("Q")
        self._collapsed_bytes = 0  # of the file's first bytes, that lie in huge pages
        self._lock = threading.Lock()
        self._claimed_bytes = 0
        self._lent_bytes = 0
        self._active_count = shape.slot_count
        self._free = list(range(shape.slot_count - 1, -1, -1))
        self._held: dict[int, SliceKey] = {}  # by slot
        self._slots: dict[Place, int] = {}
        self._pushed: set[int] = set()
        self._policy = NewestFirst(rest, guaranteed_fraction=GUARANTEED_FRACTION)
        self._policy.resize(shape.slot_count)
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
        rest: EvictionPolicy | None = None,
    ) -> Arena:
        """Make the arena of a store's root, with all its memory allocated.

        Where shared memory has less room than the budget, arena and hot tails there share what it
        has but for an eighth, and a warning says so.

        Args:
            budget_bytes: of the arena and of what is claimed and lent, together.
            slot_bytes: the longest slice to keep; longer ones are left to the disk.
            rest: says what leaves beside the newest units of live sessions; without it, S3-FIFO.

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
        room_bytes -= min(_MARGIN_SLOTS * slot_bytes, room_bytes // _LARGEST_MARGIN)
        shape = largest_shape(room_bytes, slot_bytes)
        size = shape.used_bytes(shape.slot_count)
        fd, path = create_arena_file(root, size=size, shm_dir=shm_dir, io=io)
        return cls(
            fd,
            path,
            shape,
            budget_bytes=budget_bytes,
            room_bytes=room_bytes,
            rest=S3Fifo() if rest is None else rest,
        )

    @property
    def file_bytes(self) -> int:
        """Memory that the file is to take now."""
        return self.shape.used_bytes(self._active_count)

    @property
    def slice_count(self) -> int:
        """Slices that are held now."""
        return len(self._held)

    def keep(
        self, session_hash: int, unit_index: int, extents: Iterable[Any], checksums: Iterable[int]
    ) -> None:
        """Take a unit that leaves a hot tail: newer than all units of its session taken so far.

        Args:
            extents: its encoded (extent bytes,) uint8 slice of each layer.
            checksums: their XXH3-64.
        """
        for layer, (extent, checksum) in enumerate(zip(extents, checksums, strict=True)):
            key = SliceKey(session_hash, unit_index, layer, int(checksum))
            if xxhash.xxh3_64_intdigest(extent.data) != key.checksum:
                logger.warning(
                    "unit that left shared memory did not match its checksum",
                    extra={"unit": unit_index, "layer": layer},
                )
                continue
            with self._lock:
                if self._put(key, extent):
                    self._policy.insert_newest(key.place)

    def take(self, key: SliceKey, extent: np.ndarray[Any, Any]) -> bool:
        """Take a slice that a question read from the disk, as it is stored: (bytes,) uint8.

        Returns False, and takes nothing, when the bytes are not those of the key's checksum.
        """
        if xxhash.xxh3_64_intdigest(extent.data) != key.checksum:
            return False
        with self._lock:
            if self._put(key, extent):
                self._policy.insert(key.place)
        return True

    def holds(self, place: Place) -> bool:
        """Whether the slice is here, of whichever bytes."""
        return place in self._slots

    def touch(self, places: Iterable[Place]) -> None:
        """Questions used these; what is not here any more is passed over."""
        with self._lock:
            for place in places:
                if place in self._slots:
                    self._policy.touch(place)

    def begin_push(self, session_hash: int) -> None:
        """A session has a hot tail from now on, whose units come here."""
        self._pushed.add(session_hash)

    def is_pushed(self, session_hash: int) -> bool:
        """Whether the session has a hot tail."""
        return session_hash in self._pushed

    def end_push(self, session_hash: int) -> None:
        """The session's units come no more: they are no better than others' from now on."""
        with self._lock:
            self._pushed.discard(session_hash)
            self._policy.end(session_hash)

    def forget(self, session_hash: int) -> None:
        """Let go of a session that was deleted."""
        with self._lock:
            self._policy.end(session_hash)
            for place in [place for place in self._slots if place.session_hash == session_hash]:
                self._discard(place)

    def claim(self, byte_count: int) -> None:
        """Give up memory for a hot tail, or for the key index of a push.

        Raises:
            StoreFullError: the budget does not allow it, even without a single slice here.
        """
        with self._lock:
            free_bytes = self.budget_bytes - self._claimed_bytes - self._lent_bytes
            if free_bytes - byte_count < self.shape.data_start:
                raise StoreFullError(
                    self.path.parent, byte_count, free_bytes, self.shape.data_start
                )
            self._claimed_bytes += byte_count
            shrunk = self._shrink()
        self._give_back(shrunk)

    def release(self, byte_count: int) -> None:
        """Take back the memory of what is gone."""
        with self._lock:
            self._claimed_bytes -= byte_count
            self._grow()

    def lend(self, byte_count: int) -> bool:
        """Make room for what questions take now, in all, and cannot be refused.

        Returns False when the budget is too small for it, even without a single slice here.
        """
        with self._lock:
            self._lent_bytes = byte_count
            shrunk = self._shrink()
            self._grow()
            fits = self._claimed_bytes + byte_count + self.shape.data_start <= self.budget_bytes
        self._give_back(shrunk)
        return fits

    def settle(self) -> None:
        """Give back what readers that were in the middle of a copy took of given-up memory."""
        with self._lock:
            if not self._closed and os.fstat(self._fd).st_blocks * 512 > self.file_bytes:
                self._punch()

    def verify(self, slot: int) -> tuple[int, SliceKey | None]:
        """Look whether memory kept a slot as it was filled; if not, empty it.

        Returns:
            The bytes looked at, and what was damaged.
        """
        with self._lock:
            key = self._held.get(slot)
            if key is None or self._closed:
                return 0, None
            data = self._read(slot)
            if xxhash.xxh3_64_intdigest(data) == key.checksum:
                return len(data), None
            self._discard(key.place)
            self.damaged_count += 1
            return len(data), key

    def collapse(self, byte_count: int) -> bool:
        """Put huge pages behind some more of the file, from which slices are copied faster.

        Returns whether there is more to do. It copies what is there.

        Raises:
            OSError: the kernel has none, now or ever.
        """
        with self._lock:
            start = self._collapsed_bytes
            whole = self.file_bytes - self.file_bytes % HUGE_PAGE_BYTES
            stop = min(start + max(byte_count, HUGE_PAGE_BYTES), whole)
            stop -= stop % HUGE_PAGE_BYTES
            if self._closed or stop <= start:
                return False
            self._map.collapse(start, stop)
            self._collapsed_bytes = stop
            return stop < whole

    def close(self) -> None:
        """Remove the file. Readers that have it open may read on, and let go of it soon."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._held.clear()
            self._slots.clear()
            self._free.clear()
            self.path.unlink(missing_ok=True)
            del self._words, self._map
            os.close(self._fd)

    def _put(self, key: SliceKey, extent: np.ndarray[Any, Any]) -> bool:
        """Fill a slot, for which another may leave; the policy is yet to be told."""
        if self._closed or extent.nbytes > self.shape.slot_bytes or not self._active_count:
            return False
        held = self._slots.get(key.place)
        if held is not None:
            if self._held[held] == key:
                return False
            self._discard(key.place)  # its unit was written anew, in other bytes
        entry_word = self._entry_word(self.shape.bucket_words(key.hash()))
        slot = self._free.pop() if self._free else self._empty(self._policy.evict())
        self._fill(slot, key, extent.data)
        self._words[entry_word] = key.hash() & ~SLOT_MASK | slot + 1
        return True

    def _fill(self, slot: int, key: SliceKey, data: Any) -> None:
        """Give a slot, whose generation is odd, its bytes. Nothing leads there yet."""
        word = self.shape.slot_word(slot)
        self._words[word + SESSION], self._words[word + UNIT] = key.session_hash, key.unit_index
        self._words[word + LAYER], self._words[word + CHECKSUM] = key.layer, key.checksum
        self._words[word + LENGTH] = len(data)
        written = os.pwrite(self._fd, data, self.shape.slot_offset(slot))
        if written != len(data):
            self._free.append(slot)
            raise OSError(errno.EIO, f"{written} of {len(data)} bytes written", str(self.path))
        self._words[word + GENERATION] += 1
        self._held[slot] = key
        self._slots[key.place] = slot

    def _read(self, slot: int) -> bytes:
        length = self._words[self.shape.slot_word(slot) + LENGTH]
        return os.pread(self._fd, length, self.shape.slot_offset(slot))

    def _entry_word(self, bucket: range) -> int:
        """A word of the bucket that is free; an entry leaves for it when there is none."""
        for word in bucket:
            if not self._words[word]:
                return word
        self._discard(self._held[(self._words[bucket[0]] & SLOT_MASK) - 1].place)
        return bucket[0]

    def _discard(self, place: Place) -> None:
        """Let go of a slice that the policy did not choose."""
        self._policy.remove(place)
        self._free.append(self._empty(place))

    def _empty(self, place: Place) -> int:
        """Retire the slot of a slice that the policy knows no more, and return it."""
        slot = self._slots.pop(place)
        key = self._held.pop(slot)
        self._words[self.shape.slot_word(slot) + GENERATION] += 1
        word = self._word_of(slot, key)
        if word is not None:
            self._words[word] = 0
        return slot

    def _word_of(self, slot: int, key: SliceKey) -> int | None:
        wanted = key.hash() & ~SLOT_MASK | slot + 1
        bucket = self.shape.bucket_words(key.hash())
        return next((word for word in bucket if self._words[word] == wanted), None)

    def _shrink(self) -> bool:
        """Retire slots until what is active fits; whether memory is to be given back."""
        active_count = self._fitting()
        if active_count >= self._active_count or self._closed:
            return False
        self._policy.resize(active_count)
        while len(self._held) > active_count:
            self._free.append(self._empty(self._policy.evict()))
        self._free = [slot for slot in self._free if slot < active_count]
        for slot in [slot for slot in self._held if slot >= active_count]:
            self._move(slot)
        self._active_count = active_count
        return True

    def _move(self, slot: int) -> None:
        """Move a slice to a free slot."""
        key = self._held[slot]
        data = self._read(slot)
        word = self._word_of(slot, key)
        if word is None:
            raise RuntimeError(f"slot {slot} is held, and nothing leads there")
        target = self._free.pop()
        self._fill(target, key, data)
        self._words[word] = key.hash() & ~SLOT_MASK | target + 1
        del self._held[slot]
        self._words[self.shape.slot_word(slot) + GENERATION] += 1

    def _give_back(self, shrunk: bool) -> None:
        """Give the memory of retired slots back, once nobody copies from them any more."""
        if shrunk:
            time.sleep(_COPY_GRACE_S)
            with self._lock:
                if not self._closed:
                    self._punch()

    def _punch(self) -> None:
        start, stop = self.file_bytes, self.shape.used_bytes(self.shape.slot_count)
        if stop > start:
            self._map.advise(start, stop, mmap.MADV_REMOVE)
            self._collapsed_bytes = min(self._collapsed_bytes, start - start % HUGE_PAGE_BYTES)

    def _grow(self) -> None:
        active_count = self._fitting()
        if active_count <= self._active_count or self._closed:
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
        self._policy.resize(active_count)

    def _fitting(self) -> int:
        return self.shape.fitting(self._room_bytes - self._claimed_bytes - self._lent_bytes)
