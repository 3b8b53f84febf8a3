"""The slots of an arena's file as its owner fills, moves and empties them. Which, others decide.

Readers of other processes look on all the while: a slot's generation is odd while it is filled or
empty, the entry that leads to a slot is written after its bytes, and cleared after it is retired.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

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
)
from kvstore.eviction import Place
from kvstore.hugemap import HUGE_PAGE_BYTES, HugeMap


class ArenaSlots:
    """The owner's end of the file. Not safe to use from several threads."""

    def __init__(self, fd: int, path: Path, shape: ArenaShape) -> None:
        """Take over the descriptor of a file whose memory is allocated, and make it readable."""
        self._fd = fd
        self._path = path
        self.shape = shape
        self._map = HugeMap(fd, shape.used_bytes(shape.slot_count), writable=True)
        self._words = self._map.data[: shape.data_start].data.cast("Q")
        self._collapsed_bytes = 0  # of the file's first bytes, that lie in huge pages
        self.active_count = shape.slot_count
        """The first so many slots have memory."""
        self.free = list(range(shape.slot_count - 1, -1, -1))
        self.keys: dict[int, SliceKey] = {}
        """What is held, by slot."""
        self.places: dict[Place, int] = {}
        for slot in range(shape.slot_count):
            self._words[shape.slot_word(slot) + GENERATION] = 1
        self._words[SLOTS_WORD], self._words[SLOT_BYTES_WORD] = shape.slot_count, shape.slot_bytes
        self._words[VERSION_WORD] = ARENA_VERSION
        self._words[MAGIC_WORD] = ARENA_MAGIC

    @property
    def file_bytes(self) -> int:
        """Memory that the file is to take now."""
        return self.shape.used_bytes(self.active_count)

    def crowded_by(self, key: SliceKey) -> Place | None:
        """What has to leave before a key can come, since its bucket of the directory is full."""
        bucket = self.shape.bucket_words(key.hash())
        if not all(self._words[word] for word in bucket):
            return None
        return self.keys[(self._words[bucket[0]] & SLOT_MASK) - 1].place

    def put(self, key: SliceKey, data: Any) -> None:
        """Put a slice, whose bucket has room, into a free slot."""
        slot = self.free.pop()
        self._fill(slot, key, data)
        bucket = self.shape.bucket_words(key.hash())
        word = next(word for word in bucket if not self._words[word])
        self._words[word] = key.hash() & ~SLOT_MASK | slot + 1

    def empty(self, place: Place) -> None:
        """Retire the slot of a slice that is held; it is free."""
        slot = self.places.pop(place)
        key = self.keys.pop(slot)
        self._words[self.shape.slot_word(slot) + GENERATION] += 1
        self._words[self._word_of(slot, key)] = 0
        self.free.append(slot)

    def read(self, slot: int) -> bytes:
        """The bytes of a slot that is held."""
        length = self._words[self.shape.slot_word(slot) + LENGTH]
        return os.pread(self._fd, length, self.shape.slot_offset(slot))

    def shrink(self, active_count: int) -> None:
        """Move what is held to the first slots, where it must fit. The rest keep their memory."""
        self.free = [slot for slot in self.free if slot < active_count]
        for slot in [slot for slot in self.keys if slot >= active_count]:
            self._move(slot)
        self.active_count = active_count

    def grow(self, active_count: int) -> None:
        """Take memory for more slots.

        Raises:
            OSError: there is none (ENOSPC); nothing has changed.
        """
        start, stop = self.file_bytes, self.shape.used_bytes(active_count)
        if stop > start:
            os.posix_fallocate(self._fd, start, stop - start)
        self.free.extend(range(active_count - 1, self.active_count - 1, -1))
        self.active_count = active_count

    def give_back(self) -> None:
        """Give back what the file takes beyond its active slots."""
        start, stop = self.file_bytes, self.shape.used_bytes(self.shape.slot_count)
        if stop > start and os.fstat(self._fd).st_blocks * 512 > start:
            self._map.advise(start, stop, mmap.MADV_REMOVE)
            self._collapsed_bytes = min(self._collapsed_bytes, start - start % HUGE_PAGE_BYTES)

    def collapse(self, byte_count: int) -> bool:
        """Put huge pages behind so many bytes more; whether there is more to do.

        Raises:
            OSError: the kernel has none, now or ever.
        """
        start = self._collapsed_bytes
        whole = self.file_bytes - self.file_bytes % HUGE_PAGE_BYTES
        stop = min(start + max(byte_count, HUGE_PAGE_BYTES), whole)
        stop -= stop % HUGE_PAGE_BYTES
        if stop <= start:
            return False
        self._map.collapse(start, stop)
        self._collapsed_bytes = stop
        return stop < whole

    def close(self) -> None:
        """Remove the file; nothing else may be called afterwards."""
        self.keys.clear()
        self.places.clear()
        self.free.clear()
        self._path.unlink(missing_ok=True)
        del self._words, self._map
        os.close(self._fd)

    def _fill(self, slot: int, key: SliceKey, data: Any) -> None:
        """Give a slot, whose generation is odd, its bytes. Nothing leads there yet."""
        word = self.shape.slot_word(slot)
        self._words[word + SESSION], self._words[word + UNIT] = key.session_hash, key.unit_index
        self._words[word + LAYER], self._words[word + CHECKSUM] = key.layer, key.checksum
        self._words[word + LENGTH] = len(data)
        written = os.pwrite(self._fd, data, self.shape.slot_offset(slot))
        if written != len(data):
            self.free.append(slot)
            raise OSError(errno.EIO, f"{written} of {len(data)} bytes written", str(self._path))
        self._words[word + GENERATION] += 1
        self.keys[slot] = key
        self.places[key.place] = slot

    def _move(self, slot: int) -> None:
        key = self.keys[slot]
        target = self.free.pop()
        self._fill(target, key, self.read(slot))
        self._words[self._word_of(slot, key)] = key.hash() & ~SLOT_MASK | target + 1
        del self.keys[slot]
        self._words[self.shape.slot_word(slot) + GENERATION] += 1

    def _word_of(self, slot: int, key: SliceKey) -> int:
        """The directory's word that leads to a slot."""
        wanted = key.hash() & ~SLOT_MASK | slot + 1
        bucket = self.shape.bucket_words(key.hash())
        return next(word for word in bucket if self._words[word] == wanted)
