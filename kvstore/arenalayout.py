"""How an arena's file is laid out, as its owner and readers of other processes agree on it.

A header page of 8-byte words, a header per slot, a directory, the slots. A slot holds one slice:
the encoded keys and values of one unit in one layer. Its generation is odd while it is filled or
empty and never turns back: a reader copies, then looks at it again (a seqlock). The directory is a
hash table of words (high bits of the key's hash | slot + 1); it is a hint, and the slot's own key
decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kvstore.eviction import Place
from kvstore.format import PAGE_BYTES, page_align

ARENA_MAGIC = int.from_bytes(b"LBKVRAM\0", "little")
ARENA_VERSION = 2
MAGIC_WORD, VERSION_WORD, SLOTS_WORD, SLOT_BYTES_WORD = 0, 1, 2, 3

SLOT_WORDS = 8
GENERATION, SESSION, UNIT, LAYER, CHECKSUM, LENGTH = 0, 1, 2, 3, 4, 5
FIRST_SLOT_WORD = PAGE_BYTES // 8
BUCKET_WORDS = 8
"""One cache line."""
SLOT_BITS = 24
SLOT_MASK = (1 << SLOT_BITS) - 1
MAX_SLOTS = SLOT_MASK - 1
_SLOTS_PER_BUCKET = 2
"""On average, of room for eight: a bucket hardly ever overflows."""
_ALIGN = 64
_FIRST_BYTE = 128
"""Of its page that the first slot begins at. A processor takes a load for a repeat of an earlier
store when both have the same low 12 bits: copies from just below to them, such as from a page's
start into a numpy array, run at half the speed, and from a page's start to a page's start at 0.8.
Answers read into memory that starts on a page (`kvstore/aligned.py`)."""
_WORD = (1 << 64) - 1
_UNIT_STEP, _LAYER_STEP = 0x9E3779B97F4A7C15, 0x94D049BB133111EB  # odd, of well mixed bits
_UNIT_STEPS = np.uint64(_UNIT_STEP)


class SliceKey(NamedTuple):
    """What a slot holds. The checksum is part of it: bytes of another life are never found."""

    session_hash: int
    unit_index: int
    layer: int
    checksum: int
    """XXH3-64 of the encoded bytes, as the unit table has it."""

    @property
    def place(self) -> Place:
        """Which slice it is, whatever its bytes are."""
        return Place(self.session_hash, self.unit_index, self.layer)

    def hash(self) -> int:
        """64 bits that choose the bucket and tell entries in it apart; see `key_hashes`."""
        step = self.unit_index * _UNIT_STEP + self.layer * _LAYER_STEP + self.session_hash
        return self.checksum ^ step & _WORD


def key_hashes(
    session_hash: int,
    layer: int,
    units: np.ndarray[Any, Any],
    checksums: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """`SliceKey.hash` of many slices of a layer at once: (n,) uint64 each, and so returned.

    The checksum is a good hash already; the rest keeps slices of equal bytes apart.
    """
    start = np.uint64(layer * _LAYER_STEP + session_hash & _WORD)
    hashes: np.ndarray[Any, Any] = checksums ^ (units * _UNIT_STEPS + start)
    return hashes


@dataclass(frozen=True, slots=True)
class ArenaShape:
    """Number and size of the slots, and what follows from them."""

    slot_count: int
    slot_bytes: int
    """The longest slice that a slot takes."""

    @property
    def stride_bytes(self) -> int:
        """From one slot to the next."""
        return -(-self.slot_bytes // _ALIGN) * _ALIGN

    @property
    def bucket_count(self) -> int:
        """Buckets of the directory."""
        return self.slot_count // _SLOTS_PER_BUCKET + 1

    @property
    def directory_word(self) -> int:
        """The directory's first word."""
        return FIRST_SLOT_WORD + page_align(self.slot_count * SLOT_WORDS * 8) // 8

    @property
    def data_start(self) -> int:
        """Where the slots start: headers and directory lie before it."""
        return self.directory_word * 8 + page_align(self.bucket_count * BUCKET_WORDS * 8)

    def slot_word(self, slot: int) -> int:
        """The first word of a slot's header."""
        return FIRST_SLOT_WORD + slot * SLOT_WORDS

    def slot_offset(self, slot: int) -> int:
        """Where a slot's bytes lie in the file."""
        return self.data_start + _FIRST_BYTE + slot * self.stride_bytes

    def bucket_words(self, key_hash: int) -> range:
        """The directory's words in which a key's entry may be."""
        start = self.directory_word + key_hash % self.bucket_count * BUCKET_WORDS
        return range(start, start + BUCKET_WORDS)

    def used_bytes(self, active_count: int) -> int:
        """Bytes of the file up to the end of its first `active_count` slots, in whole pages."""
        return page_align(self.slot_offset(active_count))

    def fitting(self, byte_count: int) -> int:
        """How many slots can be active in so many bytes."""
        room = byte_count // PAGE_BYTES * PAGE_BYTES - self.slot_offset(0)
        return min(max(room, 0) // self.stride_bytes, self.slot_count)


def largest_shape(byte_count: int, slot_bytes: int) -> ArenaShape:
    """The most slots that fit with their directory in so many bytes; perhaps 0."""
    per_slot = ArenaShape(1, slot_bytes).stride_bytes + SLOT_WORDS * 8
    per_slot += BUCKET_WORDS * 8 // _SLOTS_PER_BUCKET
    most = min(max(byte_count - 5 * PAGE_BYTES, 0) // per_slot, MAX_SLOTS)
    return ArenaShape(most, slot_bytes)
