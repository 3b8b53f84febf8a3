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
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kvstore.arenalayout import SliceKey
from kvstore.arenaroom import ArenaRoom
from kvstore.arenaslots import ArenaSlots
from kvstore.diskio import DiskIO
from kvstore.encoding import Layout
from kvstore.eviction import EvictionPolicy, NewestFirst, Place
from kvstore.s3fifo import S3Fifo
from kvstore.sharedfile import create_shared_file, shared_folder

logger = logging.getLogger(__name__)

GUARANTEED_FRACTION = 1 / 8
"""Share of the slots that newest units of live sessions have for themselves."""
_COPY_GRACE_S = 0.02
"""Hundreds of times what a reader needs for one slice."""


class Arena:
    """Slots in shared memory under a budget that others share. Safe to use from many threads.

    Hot tails and key indexes claim their bytes first; the arena has what is left, and shrinks and
    grows with it.
    """

    def __init__(
        self,
        fd: int,
        path: Path,
        room: ArenaRoom,
        *,
        unit_tokens: int,
        rest: EvictionPolicy,
    ) -> None:
        """Internal: use `create`."""
        self.path = path
        self.shape = room.shape
        self.budget_bytes = room.budget_bytes
        """Of the arena's file, all hot tails and the key indexes in use together."""
        self.damaged_count = 0
        """Slices that memory did not keep as they were."""
        self._room = room
        self._unit_tokens = unit_tokens
        self._slots = ArenaSlots(fd, path, self.shape)
        self._lock = threading.Lock()
        self._pushed: set[int] = set()
        self._policy = NewestFirst(rest, guaranteed_fraction=GUARANTEED_FRACTION)
        self._policy.resize(self.shape.slot_count)
        self._closed = False

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        budget_bytes: int,
        slot_bytes: int,
        unit_tokens: int = 0,
        shm_dir: Path | None = None,
        io: DiskIO | None = None,
        rest: EvictionPolicy | None = None,
    ) -> Arena:
        """Make the arena of a store's root, with all its memory allocated.

        Where shared memory, or the machine, has less room than the budget, arena and hot tails
        there share what it has but for an eighth, and a warning says so.

        Args:
            budget_bytes: of the arena and of what is claimed and lent, together.
            slot_bytes: the longest slice to keep; longer ones are left to the disk.
            unit_tokens: of a full unit, by which `fits` tells; without it, all is said to fit.
            rest: says what leaves beside the newest units of live sessions; without it, S3-FIFO.

        Raises:
            OSError: the folder does not exist, or lost its room meanwhile.
        """
        io = io or DiskIO()
        folder = shared_folder(shm_dir)
        room = ArenaRoom(folder, budget_bytes=budget_bytes, slot_bytes=slot_bytes, io=io)
        size = room.shape.used_bytes(room.shape.slot_count)
        fd, path = create_shared_file(root, "ram", size=size, shm_dir=shm_dir, io=io)
        policy = S3Fifo() if rest is None else rest
        return cls(fd, path, room, unit_tokens=unit_tokens, rest=policy)

    @property
    def file_bytes(self) -> int:
        """Memory that the file is to take now."""
        return self._slots.file_bytes

    @property
    def slice_count(self) -> int:
        """Slices that are held now."""
        return len(self._slots.keys)

    def fits(self, layout: Layout) -> bool:
        """Whether a slot takes a full unit of a session: not so in a longer encoding than ours."""
        return layout.extent_bytes(self._unit_tokens) <= self.shape.slot_bytes

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

    def checksum_at(self, place: Place) -> int | None:
        """XXH3-64 of what is held of a slice, which may be of before it was thinned; None: nothing.

        Others may change it meanwhile.
        """
        with self._lock:
            slot = self._slots.places.get(place)
            return None if slot is None else self._slots.keys[slot].checksum

    def touch(self, places: Iterable[Place]) -> None:
        """Questions used these; what is not here any more is passed over."""
        with self._lock:
            for place in places:
                if place in self._slots.places:
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
            for place in list(self._slots.places):
                if place.session_hash == session_hash:
                    self._discard(place)

    def claim(self, byte_count: int) -> None:
        """Give up memory for a hot tail, or for the key index of a push.

        Raises:
            StoreFullError: the budget does not allow it, even without a single slice here.
        """
        with self._lock:
            self._room.claim(byte_count)
            shrunk = self._shrink()
        self._give_back(shrunk)

    def release(self, byte_count: int) -> None:
        """Take back the memory of what is gone."""
        with self._lock:
            self._room.release(byte_count)
            self._grow()

    def lend(self, byte_count: int) -> bool:
        """Make room for what questions take now, in all, and cannot be refused.

        Returns False when the budget is too small for it, even without a single slice here.
        """
        with self._lock:
            fits = self._room.lend(byte_count)
            shrunk = self._shrink()
            self._grow()
        self._give_back(shrunk)
        return fits

    def settle(self) -> None:
        """Give back what readers that were in the middle of a copy took of given-up memory."""
        with self._lock:
            if not self._closed:
                self._slots.give_back()

    def verify(self, slot: int) -> tuple[int, SliceKey | None]:
        """Look whether memory kept a slot as it was filled; if not, empty it.

        Returns:
            The bytes looked at, and what was damaged.
        """
        with self._lock:
            key = self._slots.keys.get(slot)
            if key is None or self._closed:
                return 0, None
            data = self._slots.read(slot)
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
            return not self._closed and self._slots.collapse(byte_count)

    def close(self) -> None:
        """Remove the file. Readers that have it open may read on, and let go of it soon."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._slots.close()

    def _put(self, key: SliceKey, extent: np.ndarray[Any, Any]) -> bool:
        """Fill a slot, for which another may leave; the policy is yet to be told."""
        slots = self._slots
        if self._closed or extent.nbytes > self.shape.slot_bytes or not slots.active_count:
            return False
        held = slots.places.get(key.place)
        if held is not None:
            if slots.keys[held] == key:
                return False
            self._discard(key.place)  # its unit was written anew, in other bytes
        crowded = slots.crowded_by(key)
        if crowded is not None:
            self._discard(crowded)
        if not slots.free:
            slots.empty(self._policy.evict())
        slots.put(key, extent.data)
        return True

    def _discard(self, place: Place) -> None:
        """Let go of a slice that the policy did not choose."""
        self._policy.remove(place)
        self._slots.empty(place)

    def _shrink(self) -> bool:
        """Retire slots until what is active fits; whether memory is to be given back."""
        active_count = self._room.slot_count()
        if self._closed or active_count >= self._slots.active_count:
            return False
        self._policy.resize(active_count)
        while self.slice_count > active_count:
            self._slots.empty(self._policy.evict())
        self._slots.shrink(active_count)
        return True

    def _give_back(self, shrunk: bool) -> None:
        """Give the memory of retired slots back, once nobody copies from them any more."""
        if shrunk:
            time.sleep(_COPY_GRACE_S)
            self.settle()

    def _grow(self) -> None:
        active_count = self._room.slot_count()
        if self._closed or active_count <= self._slots.active_count:
            return
        try:
            self._slots.grow(active_count)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            logger.warning(
                "shared memory has no room for the RAM tier to grow into",
                extra={
                    "path": str(self.path),
                    "needed_bytes": self.shape.used_bytes(active_count) - self.file_bytes,
                },
            )
            return
        self._policy.resize(active_count)
