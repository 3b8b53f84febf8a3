"""A reader's side of the hot tail: copies that are checked afterwards, and never a write."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kvstore.encoding import Layout
from kvstore.encoding_codec import decode_extent, scratch_bytes
from kvstore.format import FORMAT_VERSION, PAGE_BYTES
from kvstore.hottail import (
    EPOCH_WORD,
    FIRST_SLOT_WORD,
    FLOOR_WORD,
    HOT_MAGIC,
    LAYOUT_WORD,
    MAGIC_WORD,
    RING_WORD,
    SESSION_WORD,
    SLOT_OFFSET,
    SLOT_TABLE_HASH,
    SLOT_THUMBNAIL,
    SLOT_TOKENS,
    SLOT_UNIT,
    SLOT_WORDS,
    SLOTS_WORD,
    VERSION_WORD,
    ring_offset,
)
from kvstore.table import UnitTable, table_bytes

_CACHED_ENTRIES = 4096
_ENTRIES_BETWEEN_LOOKS = 256
"""Kept more before those of units that left the ring are let go of: each takes about 1 KiB."""


@dataclass(frozen=True, slots=True, eq=False)
class HotEntry:
    """A unit found in the ring, with its checked table."""

    table: UnitTable
    start: int
    """Where its record starts in the ring."""
    thumbnail_start: int

    def checksum_matches(self, layer: int, *parts: np.ndarray[Any, Any]) -> bool:
        """Whether these make up what is stored of the unit's keys and values of that layer."""
        return kv_checksum(*parts) == int(self.table.checksums[0, layer])


def kv_checksum(*parts: np.ndarray[Any, Any]) -> int:
    """XXH3-64 of [keys | values] as they are stored: C-contiguous parts, one after the other."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)  # type: ignore[arg-type]  # typed as bytes; takes any buffer
    return digest.intdigest()


class HotTailView:
    """A read-only mapping of one writer's hot tail. Safe to use from many threads."""

    def __init__(self, mapping: mmap.mmap, layout: Layout) -> None:
        self._layout = layout
        head = memoryview(mapping)[:PAGE_BYTES].cast("Q")
        self._slot_count = int(head[SLOTS_WORD])
        start = ring_offset(self._slot_count)
        self._words = memoryview(mapping)[:start].cast("Q")
        self._ring = np.frombuffer(mapping, dtype=np.uint8, offset=start)
        self._entries: dict[int, HotEntry] = {}
        self._next_look_count = _ENTRIES_BETWEEN_LOOKS

    @classmethod
    def open(
        cls, path: Path, *, session_hash: int, epoch: int, layout: Layout
    ) -> HotTailView | None:
        """Map the hot tail of this session and epoch; None when it is not there."""
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(fd).st_size < PAGE_BYTES:
                return None
            mapping = mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        words = memoryview(mapping)[:PAGE_BYTES].cast("Q")
        expected = {
            MAGIC_WORD: HOT_MAGIC,
            VERSION_WORD: FORMAT_VERSION,
            SESSION_WORD: session_hash,
            EPOCH_WORD: epoch,
            LAYOUT_WORD: layout.fingerprint,
        }
        if any(words[word] != value for word, value in expected.items()):
            return None
        if ring_offset(words[SLOTS_WORD]) + words[RING_WORD] != len(mapping):
            return None
        return cls(mapping, layout)

    @property
    def floor(self) -> int:
        """Units before this one have left."""
        return int(self._words[FLOOR_WORD])

    def still_holds(self, unit_index: int) -> bool:
        """Whether the unit had not left yet: asked after a copy, it says the copy is whole."""
        return self.floor <= unit_index

    def entry(self, unit_index: int) -> HotEntry | None:
        """Find a visible unit; None when it has left or its table is damaged."""
        if not self.still_holds(unit_index):
            return None
        found = self._entries.get(unit_index)
        if found is not None:
            return found
        slot = FIRST_SLOT_WORD + unit_index % self._slot_count * SLOT_WORDS
        words = self._words[slot : slot + SLOT_WORDS].tolist()
        if words[SLOT_UNIT] != unit_index:
            return None
        layer_count = self._layout.geometry.layer_count
        token_count, start = words[SLOT_TOKENS], words[SLOT_OFFSET]
        table_start = start + layer_count * self._layout.extent_bytes(token_count)
        table_stop = table_start + table_bytes(1, token_count, layer_count)
        if table_stop + words[SLOT_THUMBNAIL] > len(self._ring):
            return None
        data = self._ring[table_start:table_stop].tobytes()
        if not self.still_holds(unit_index):
            return None
        if xxhash.xxh3_64_intdigest(data) != words[SLOT_TABLE_HASH]:
            return None
        table = UnitTable.parse(data, unit_count=1, layer_count=layer_count)
        if int(table.rows["index"][0]) != unit_index:
            return None
        if len(self._entries) >= self._next_look_count:
            self._let_go()
        entry = HotEntry(table, start, table_stop)
        self._entries[unit_index] = entry
        return entry

    def _let_go(self) -> None:
        """Keep no tables of units that left, nor more than so many; other threads may add some."""
        floor = self.floor
        kept = {unit: entry for unit, entry in list(self._entries.items()) if unit >= floor}
        if len(kept) > _CACHED_ENTRIES - _ENTRIES_BETWEEN_LOOKS:
            kept = {}
        self._entries = kept
        self._next_look_count = len(kept) + _ENTRIES_BETWEEN_LOOKS

    def copy_extent(
        self,
        unit_index: int,
        layer: int,
        keys_out: np.ndarray[Any, Any],
        values_out: np.ndarray[Any, Any],
    ) -> bool:
        """Copy a unit's keys and values of one layer; False when it left or does not match."""
        if self._layout.quantised:
            data = scratch_bytes(self._layout.extent_bytes(len(keys_out)))
            if not self.copy_stored(unit_index, layer, data):
                return False
            decode_extent(self._layout, data, keys_out, values_out)
            return True
        entry = self.entry(unit_index)
        if entry is None:
            return False
        half = keys_out.nbytes
        start = entry.start + layer * 2 * half
        keys_out.view(np.uint8).reshape(-1)[:] = self._ring[start : start + half]
        values_out.view(np.uint8).reshape(-1)[:] = self._ring[start + half : start + 2 * half]
        if not self.still_holds(unit_index):
            return False
        return entry.checksum_matches(layer, keys_out, values_out)

    def copy_stored(self, unit_index: int, layer: int, out: np.ndarray[Any, Any]) -> bool:
        """Copy a unit of one layer as it is stored; False when it left or does not match.

        Args:
            out: (bytes,) uint8 of its size; void where False is returned.
        """
        entry = self.entry(unit_index)
        if entry is None:
            return False
        start = entry.start + layer * len(out)
        # Copied before it is checked: the ring may be written at any time.
        out[:] = self._ring[start : start + len(out)]
        return self.still_holds(unit_index) and entry.checksum_matches(layer, out)

    def thumbnail(self, unit_index: int) -> bytes | None:
        """Copy a unit's JPEG; None when it left or does not match."""
        entry = self.entry(unit_index)
        if entry is None:
            return None
        row = entry.table.rows[0]
        stop = entry.thumbnail_start + int(row["thumbnail_bytes"])
        data = self._ring[entry.thumbnail_start : stop].tobytes()
        if not self.still_holds(unit_index):
            return None
        return data if xxhash.xxh3_64_intdigest(data) == int(row["thumbnail_hash"]) else None
