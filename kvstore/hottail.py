"""The writer's side of the hot tail: a ring of the newest units in shared memory.

Layout: a header page of 8-byte words, a table of slots (unit index modulo slot count), the ring.
A record is [per layer: keys | values, encoded][unit table][thumbnail], in one piece. Units leave in
order: before a record is overwritten, the header's floor is raised past its unit. Readers copy,
then look at the floor again (a seqlock whose counter never turns back), and check the unit's XXH3.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kvstore.arena import Arena
from kvstore.diskio import DiskIO
from kvstore.encoding import Layout
from kvstore.encoding_codec import UnencodableError
from kvstore.encoding_layers import encode_layers
from kvstore.errors import NotFiniteError, UnitTooLargeError
from kvstore.format import FORMAT_VERSION, PAGE_BYTES, page_align
from kvstore.hotfile import create_hot_file
from kvstore.hugemap import put_huge_pages
from kvstore.paths import session_hash
from kvstore.table import TablePart, join_table, table_bytes
from kvstore.unit import Unit

HOT_MAGIC = int.from_bytes(b"LBKVHOT\0", "little")
MAGIC_WORD, VERSION_WORD, SESSION_WORD, EPOCH_WORD = 0, 1, 2, 3
LAYOUT_WORD, RING_WORD, SLOTS_WORD, FLOOR_WORD = 4, 5, 6, 7
SLOT_WORDS = 8
SLOT_UNIT, SLOT_OFFSET, SLOT_TOKENS, SLOT_TABLE_HASH, SLOT_THUMBNAIL = 0, 1, 2, 3, 4
FIRST_SLOT_WORD = PAGE_BYTES // 8
_ALIGN = 64
_MADV_POPULATE_WRITE = 23  # of Linux 5.14 and later
_MIN_SLOTS, _MAX_SLOTS = 64, 16384


def slot_count_for(ring_bytes: int) -> int:
    """Slots of a ring: enough for records of a page, within reason."""
    return min(max(ring_bytes // PAGE_BYTES, _MIN_SLOTS), _MAX_SLOTS)


def ring_offset(slot_count: int) -> int:
    """Where the ring starts in the file."""
    return PAGE_BYTES + page_align(slot_count * SLOT_WORDS * 8)


def file_bytes(ring_bytes: int) -> int:
    """Size of a hot tail's file."""
    return ring_offset(slot_count_for(ring_bytes)) + ring_bytes


@dataclass(frozen=True, slots=True, eq=False)
class HotRecord:
    """A unit in the ring, as the commit needs it."""

    unit: Unit
    part: TablePart
    extents: np.ndarray[Any, Any]
    """(layers, extent bytes) uint8, a view of the ring."""


@dataclass(frozen=True, slots=True)
class _Placed:
    unit_index: int
    start: int
    stop: int
    record: HotRecord


class HotTail:
    """The ring of one writer. Owns the file's descriptor, and with it the lock."""

    def __init__(
        self,
        fd: int,
        path: Path,
        session_id: str,
        layout: Layout,
        ring_bytes: int,
        arena: Arena | None,
    ) -> None:
        """Internal: use `create`."""
        self._arena = arena
        self._fd = fd
        self.path = path
        self._session_id = session_id
        self._layout = layout
        self.ring_bytes = ring_bytes
        self._slot_count = slot_count_for(ring_bytes)
        self._file_bytes = file_bytes(ring_bytes)
        put_huge_pages(fd, self._file_bytes)  # of which a disk takes blocks at twice the speed
        self._mapping: mmap.mmap | None = None
        mapping = self._mapping = mmap.mmap(fd, self._file_bytes, flags=mmap.MAP_SHARED)
        with suppress(OSError):  # or each page is met for the first time by a unit that waits
            mapping.madvise(_MADV_POPULATE_WRITE)
        start = ring_offset(self._slot_count)
        self._words = memoryview(mapping)[:start].cast("Q")
        self._ring = np.frombuffer(mapping, dtype=np.uint8, offset=start)
        self._placed: deque[_Placed] = deque()
        self._next = 0

    @classmethod
    def create(
        cls,
        root: Path,
        session_id: str,
        *,
        epoch: int,
        layout: Layout,
        ring_bytes: int,
        first_unit: int,
        shm_dir: Path | None,
        min_free_bytes: int,
        io: DiskIO,
        arena: Arena | None = None,
    ) -> HotTail:
        """Make the file of a new epoch's ring, whose first unit will be `first_unit`.

        Args:
            arena: takes the units that leave; its budget has room for the file, or it is not made.

        Raises:
            StoreFullError: no folder has room for it, or the budget has none.
        """
        ring_bytes = page_align(ring_bytes)  # what is claimed is what the file takes
        size = file_bytes(ring_bytes)
        with ExitStack() as undo:
            if arena is not None:
                arena.claim(size)
                undo.callback(arena.release, size)
            fd, path = create_hot_file(
                root,
                session_id,
                epoch=epoch,
                size=size,
                shm_dir=shm_dir,
                min_free_bytes=min_free_bytes,
                io=io,
            )
            tail = cls(fd, path, session_id, layout, ring_bytes, arena)
            undo.pop_all()
        if arena is not None:
            arena.begin_push(session_hash(session_id))
        words = tail._words
        words[VERSION_WORD], words[SESSION_WORD] = FORMAT_VERSION, session_hash(session_id)
        words[EPOCH_WORD], words[LAYOUT_WORD] = epoch, layout.fingerprint
        words[RING_WORD], words[SLOTS_WORD] = ring_bytes, tail._slot_count
        words[FLOOR_WORD] = first_unit
        words[MAGIC_WORD] = HOT_MAGIC
        return tail

    def record_bytes(self, unit: Unit) -> int:
        """Bytes a unit takes in the ring.

        Raises:
            UnitTooLargeError: more than the ring has.
        """
        layer_count = self._layout.geometry.layer_count
        kv_bytes = layer_count * self._layout.extent_bytes(unit.token_count)
        meta_bytes = table_bytes(1, unit.token_count, layer_count)
        total = kv_bytes + meta_bytes + len(unit.thumbnail_jpeg)
        # Where slices are whole pages, each starts on one: so a disk takes them as they lie.
        whole_pages = self._layout.extent_bytes(unit.token_count) % PAGE_BYTES == 0
        align = PAGE_BYTES if whole_pages else _ALIGN
        aligned = -(-total // align) * align
        if aligned > self.ring_bytes:
            raise UnitTooLargeError(self._session_id, aligned, self.ring_bytes)
        return aligned

    def _overwritten(self, start: int, stop: int) -> Iterator[_Placed]:
        """The records that must leave for [start, stop), oldest first."""
        wrapped = start < self._next
        for placed in self._placed:
            behind = wrapped and placed.start >= self._next
            if not behind and not (placed.start < stop and start < placed.stop):
                return
            yield placed

    def _place(self, unit: Unit) -> tuple[int, int, int]:
        """Where the unit would go: (start, stop, floor afterwards)."""
        length = self.record_bytes(unit)
        start = self._next if self._next + length <= self.ring_bytes else 0
        floor = int(self._words[FLOOR_WORD])
        for placed in self._overwritten(start, start + length):
            floor = placed.unit_index + 1
        return start, start + length, max(floor, unit.index + 1 - self._slot_count)

    def floor_after(self, unit: Unit) -> int:
        """First unit that would still be here once `unit` is appended: all before it leave."""
        return self._place(unit)[2]

    def append(
        self, unit: Unit, keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
    ) -> HotRecord:
        """Encode a unit into the ring. The caller made sure that what leaves is durable.

        Raises:
            NotFiniteError: NaN or infinity, where the encoding has no place for it; the unit was
                not taken.
        """
        start, stop, floor = self._place(unit)
        self._hand_over(floor)  # before the floor rises, so that they are always in memory
        self._words[FLOOR_WORD] = floor
        shape = self._layout.geometry
        extent_bytes = self._layout.extent_bytes(unit.token_count)
        kv_stop = start + shape.layer_count * extent_bytes
        extents = self._ring[start:kv_stop].reshape(shape.layer_count, extent_bytes)
        try:
            checksums = encode_layers(self._layout, keys, values, extents)
        except UnencodableError as error:
            raise NotFiniteError(
                self._session_id, unit.index, error.layer, self._layout.encoding, str(error)
            ) from error
        part = TablePart.pack(unit, np.array(checksums, dtype=np.uint64))
        table = join_table([part])
        meta = np.frombuffer(table + unit.thumbnail_jpeg, dtype=np.uint8)
        self._ring[kv_stop : kv_stop + len(meta)] = meta
        self._write_slot(unit, start, xxhash.xxh3_64_intdigest(table))
        record = HotRecord(unit, part, extents)
        self._placed.append(_Placed(unit.index, start, stop, record))
        self._next = stop
        return record

    def _hand_over(self, stop_unit: int) -> None:
        """Give the units before `stop_unit`, which are durable, to the arena, the oldest first."""
        while self._placed and self._placed[0].unit_index < stop_unit:
            record = self._placed.popleft().record
            if self._arena is not None:
                checksums = np.frombuffer(record.part.checksums, "<u8").tolist()
                hash_ = session_hash(self._session_id)
                self._arena.keep(hash_, record.unit.index, record.extents, checksums)

    def _write_slot(self, unit: Unit, start: int, table_hash: int) -> None:
        slot = FIRST_SLOT_WORD + unit.index % self._slot_count * SLOT_WORDS
        self._words[slot + SLOT_UNIT] = unit.index
        self._words[slot + SLOT_OFFSET] = start
        self._words[slot + SLOT_TOKENS] = unit.token_count
        self._words[slot + SLOT_TABLE_HASH] = table_hash
        self._words[slot + SLOT_THUMBNAIL] = len(unit.thumbnail_jpeg)

    def close(self, *, durable_unit_count: int = 0) -> None:
        """Remove the file and release its lock.

        Where all units are durable their memory is free at once, whoever maps the file: readers
        find them elsewhere. Else readers that map it keep what they see.

        Args:
            durable_unit_count: units before it are for the arena.
        """
        try:
            self._hand_over(durable_unit_count)
            if not self._placed:
                self._give_back(durable_unit_count)
        finally:
            self._placed.clear()
            self._remove()

    def _give_back(self, stop_unit: int) -> None:
        """Let go of all memory but the header page, which says that nothing is here any more.

        A reader in the middle of a copy sees so afterwards; the page that it may have taken anew
        goes with its mapping.
        """
        self._words[FLOOR_WORD] = max(self._words[FLOOR_WORD], stop_unit)
        if self._mapping is not None:
            with suppress(OSError):  # a file system without holes: it goes with the last mapping
                self._mapping.madvise(mmap.MADV_REMOVE, PAGE_BYTES, self._file_bytes - PAGE_BYTES)

    def _remove(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._fd)
        # The memory goes with the last mapping: do not keep ours until the owner is collected.
        self._words.release()
        self._ring = np.empty(0, dtype=np.uint8)
        self._mapping = None
        if self._arena is not None:
            self._arena.end_push(session_hash(self._session_id))
            self._arena.release(file_bytes(self.ring_bytes))
