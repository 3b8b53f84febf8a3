"""A reader's side of the RAM tier: it searches and copies without a lock and writes nothing.

So a reader that is killed, wherever it was, leaves nothing behind, and questions cannot disturb
what is kept.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kvstore.arenafile import arena_paths
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
from kvstore.encoding_codec import decode_extent, scratch_bytes
from kvstore.extents import Located
from kvstore.format import PAGE_BYTES
from kvstore.paths import session_hash

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
"""How often arenas that came or went are looked for."""


class ArenaView:
    """One arena, read-only; its descriptor is closed when nobody uses the view any more."""

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
        self.shape = ArenaShape(int(head[SLOTS_WORD]), int(head[SLOT_BYTES_WORD]))
        mapping = mmap.mmap(self._fd, self.shape.data_start, access=mmap.ACCESS_READ)
        self._words = memoryview(mapping).cast("Q")

    @property
    def removed(self) -> bool:
        """Whether its owner closed it, or died and was cleaned up after."""
        return os.fstat(self._fd).st_nlink == 0

    def copy(self, key: SliceKey, buffers: Sequence[Any]) -> bool:
        """Copy a slice into buffers of its length; False when it is not here, or left meanwhile.

        The bytes are those that the owner put under this key; that they are undamaged is for the
        caller to check.
        """
        key_hash = key.hash()
        for word in self.shape.bucket_words(key_hash):
            entry = self._words[word]
            slot = (entry & SLOT_MASK) - 1
            if (entry ^ key_hash) & ~SLOT_MASK or not 0 <= slot < self.shape.slot_count:
                continue
            generation = self._words[self.shape.slot_word(slot) + GENERATION]
            if generation % 2 or not self._holds(slot, key):
                continue
            byte_count = self._words[self.shape.slot_word(slot) + LENGTH]
            if byte_count != sum(memoryview(buffer).nbytes for buffer in buffers):
                continue
            read_bytes = os.preadv(self._fd, buffers, self.shape.slot_offset(slot))
            if read_bytes == byte_count and self._undisturbed(slot, generation):
                return True
        return False

    def _holds(self, slot: int, key: SliceKey) -> bool:
        word = self.shape.slot_word(slot)
        words = self._words
        found = SliceKey(
            words[word + SESSION], words[word + UNIT], words[word + LAYER], words[word + CHECKSUM]
        )
        return found == key

    def _undisturbed(self, slot: int, generation: int) -> bool:
        """Whether the slot, and so its key, is as it was when it had this generation."""
        return self._words[self.shape.slot_word(slot) + GENERATION] == generation


class RamTier:
    """All arenas of a store's root, found as they come and go. Safe to use from many threads."""

    def __init__(
        self, root: Path, *, shm_dir: Path | None = None, look_every_s: float = _LOOK_EVERY_S
    ) -> None:
        """Nothing is opened yet.

        Args:
            shm_dir: as the owner has it.
            look_every_s: how often to look for arenas that came or went.
        """
        self._root = root
        self._shm_dir = shm_dir
        self._look_every_s = look_every_s
        self._views: tuple[ArenaView, ...] = ()
        self._looked_s: float | None = None
        self._lock = threading.Lock()

    def fill(self, session_id: str, layer: int, located: Located) -> bool:
        """Fill an extent whose block is known, verified; False when its slice is not here."""
        extent, (block, position) = located
        layout = block.place.layout
        checksum = int(block.table.checksums[position, layer])
        key = SliceKey(session_hash(session_id), extent.unit_index, layer, checksum)
        parts = [extent.keys.reshape(-1).view(np.uint8), extent.values.reshape(-1).view(np.uint8)]
        if layout.quantised:
            parts = [scratch_bytes(layout.extent_bytes(len(extent.keys)))]
        if not any(view.copy(key, [part.data for part in parts]) for view in self._current()):
            return False
        hasher = xxhash.xxh3_64()
        for part in parts:
            hasher.update(part.data)
        if hasher.intdigest() != checksum:
            logger.warning(
                "slice in the RAM tier did not match its checksum",
                extra={"session": session_id, "unit": extent.unit_index, "layer": layer},
            )
            return False  # the disk has it, and its own word on it
        if layout.quantised:
            decode_extent(layout, parts[0], extent.keys, extent.values)
        return True

    def refresh(self) -> None:
        """Let go of arenas that were removed, whose memory would stay, and find new ones."""
        with self._lock:
            self._looked_s = time.monotonic()
            views = [view for view in self._views if not view.removed]
            known = {view.path for view in views}
            for path in arena_paths(self._root, shm_dir=self._shm_dir):
                if path in known:
                    continue
                try:
                    views.append(ArenaView(path))
                except (FileNotFoundError, ValueError):
                    continue  # it is being made or removed: the next look tells
            self._views = tuple(views)

    def _current(self) -> tuple[ArenaView, ...]:
        looked_s = self._looked_s
        if looked_s is None or time.monotonic() - looked_s >= self._look_every_s:
            self.refresh()
        return self._views
