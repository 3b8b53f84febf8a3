"""The CTL page: what a session's writer tells readers of other processes without system calls.

One 4 KiB page, mapped shared. Counts only grow within an epoch. A reader takes a state that holds
together by reading the epoch before and after the rest. The page is a hint that recovery rebuilds:
deleting it while nobody has the session open loses nothing that is durable.

Every word is there three times (`triplewords.py`) and every text twice, with a checksum
(`controltext.py`): a flipped bit changes nothing. More damage is told, until the next writer
renews the page.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import xxhash

from kvstore.controltext import ControlText, read_text, write_text
from kvstore.diskio import DiskIO, write_fully
from kvstore.errors import ControlCorruptError, FormatVersionError
from kvstore.format import FORMAT_VERSION, PAGE_BYTES
from kvstore.paths import CONTROL_NAME
from kvstore.triplewords import TripleWords

_MAGIC = int.from_bytes(b"LBKVCTL\0", "little")
_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")

# Places of the 8-byte words.
_MAGIC_WORD, _VERSION_WORD, _SESSION_WORD = 0, 1, 2
_VISIBLE_WORD, _DURABLE_BLOCKS_WORD, _DURABLE_UNITS_WORD, _DURABLE_CHECK_WORD = 3, 4, 5, 6
_STATE_WORD, _BOOT_WORD, _PID_WORD, _EPOCH_CHECK_WORD, _EPOCH_WORD = 7, 8, 9, 10, 11
_RECEIVED_WORD, _SETTLED_WORD, _FIRST_UNIT_WORD, _REWRITES_WORD = 12, 13, 14, 15
_WORD_COUNT = 32  # with room for more
_PTS = struct.Struct("<d")


class WriterState(IntEnum):
    """What became of the session's writer; OPEN also when it was killed."""

    OPEN = 1
    CLOSED = 2
    FAILED = 3
    DELETED = 4


class ControlState(NamedTuple):
    """The counts of the page at one moment."""

    epoch: int
    visible_unit_count: int
    durable_unit_count: int
    durable_block_count: int
    writer_state: int
    this_boot: bool
    """False: the machine was started anew since, so the counts may lag behind the disk."""
    first_unit: int
    """Units before it were dropped."""
    rewrite_count: int
    """Raised whenever a segment was written anew, thinner. Only a change says something."""


class Watermarks(NamedTuple):
    """What is on its way to a session. Media times in seconds; None: not known."""

    epoch: int
    received_pts_s: float | None
    """Time of the last frame that was received."""
    settled_pts_s: float | None
    """Every unit with a last frame at or before this time is visible in this epoch.

    As a reader tells it: to this reader.
    """


def boot_hash() -> int:
    """A hash that differs between two starts of the machine."""
    return xxhash.xxh3_64_intdigest(_BOOT_ID_PATH.read_bytes())


def _check(session_hash: int, word: int) -> int:
    """What stands beside a word that recovery may trust."""
    data = session_hash.to_bytes(8, "little") + word.to_bytes(8, "little")
    return xxhash.xxh3_64_intdigest(data)


class ControlPage:
    """A mapping of the page, for a reader or (`writable`) for the writer."""

    def __init__(self, fd: int, path: Path, session_hash: int, *, writable: bool) -> None:
        """Internal: use `open` or `create`."""
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, PAGE_BYTES, flags=mmap.MAP_SHARED, prot=access)
        self._words = TripleWords(self._map, path, word_count=_WORD_COUNT)
        self._session_hash = session_hash
        self._boot = boot_hash()

    @classmethod
    def open(cls, folder: Path, session_hash: int, *, writable: bool = False) -> ControlPage | None:
        """Map the session's page; None when there is none, or none that can be told to be one.

        Raises:
            FormatVersionError: it is one of another version.
            ControlCorruptError: what it is cannot be told.
        """
        path = folder / CONTROL_NAME
        try:
            fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(fd).st_size < PAGE_BYTES:
                return None
            page = cls(fd, path, session_hash, writable=writable)
        finally:
            os.close(fd)
        try:
            ours = page._words[_MAGIC_WORD] == _MAGIC and page._words[_SESSION_WORD] == session_hash
            version = page._words[_VERSION_WORD]
        except ControlCorruptError:
            page.close()
            if writable:
                return None
            raise
        if not ours:
            page.close()
            return None
        if version != FORMAT_VERSION:
            raise FormatVersionError(path, version, FORMAT_VERSION)
        return page

    @classmethod
    def create(cls, folder: Path, session_hash: int, io: DiskIO) -> ControlPage:
        """Write an empty page in place (mappings of readers stay valid) and map it."""
        path = folder / CONTROL_NAME
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            head = [0] * _WORD_COUNT
            head[_MAGIC_WORD], head[_VERSION_WORD] = _MAGIC, FORMAT_VERSION
            head[_SESSION_WORD] = session_hash
            write_fully(io, fd, [TripleWords.pack(head).ljust(PAGE_BYTES, b"\0")], 0)
            io.fsync(fd)
            io.fsync_folder(folder)
            return cls(fd, path, session_hash, writable=True)
        finally:
            os.close(fd)

    def state(self) -> ControlState:
        """The counts at one moment, all of one epoch.

        Raises:
            ControlCorruptError: damage hides one of them.
        """
        words = self._words
        while True:
            epoch = words[_EPOCH_WORD]
            state = ControlState(
                epoch=epoch,
                visible_unit_count=words[_VISIBLE_WORD],
                durable_unit_count=words[_DURABLE_UNITS_WORD],
                durable_block_count=words[_DURABLE_BLOCKS_WORD],
                writer_state=words[_STATE_WORD],
                this_boot=words[_BOOT_WORD] == self._boot,
                first_unit=words[_FIRST_UNIT_WORD],
                rewrite_count=words[_REWRITES_WORD],
            )
            if words[_EPOCH_WORD] == epoch:
                return state

    def text(self, epoch: int) -> ControlText | None:
        """What the writer of `epoch`, which must be current, wrote once; None when damaged."""
        return read_text(self._map, epoch)

    def proven_block_count(self) -> int:
        """Blocks that were acknowledged for certain; 0 when the word and its check disagree."""
        return self._checked(_DURABLE_BLOCKS_WORD, _DURABLE_CHECK_WORD) or 0

    def last_epoch(self) -> int:
        """The last epoch that was begun; 0 when the word and its check disagree."""
        return self._checked(_EPOCH_WORD, _EPOCH_CHECK_WORD) or 0

    def begun(self) -> tuple[int, int]:
        """Blocks that were acknowledged for certain, and the epoch that those behind them are of.

        Without the first, the second says nothing about any block: then both are 0.
        """
        block_count = self._checked(_DURABLE_BLOCKS_WORD, _DURABLE_CHECK_WORD)
        return (0, 0) if block_count is None else (block_count, self.last_epoch())

    def _checked(self, word: int, check_word: int) -> int | None:
        try:
            value = self._words[word]
            return value if self._words[check_word] == _check(self._session_hash, value) else None
        except ControlCorruptError:
            return None

    def watermarks(self) -> Watermarks:
        """What is on its way, all of one epoch.

        Raises:
            ControlCorruptError: damage hides it.
        """
        while True:
            epoch = self._words[_EPOCH_WORD]
            known = epoch != 0 and self._words[_BOOT_WORD] == self._boot
            settled_pts_s = self._pts(_SETTLED_WORD) if known else None
            received_pts_s = self._pts(_RECEIVED_WORD) if known else None
            if self._words[_EPOCH_WORD] == epoch:
                return Watermarks(epoch, received_pts_s, settled_pts_s)

    def set_watermarks(self, *, received_pts_s: float | None, settled_pts_s: float | None) -> None:
        """Publish what is on its way: from any thread, one at a time."""
        for word, pts_s in ((_RECEIVED_WORD, received_pts_s), (_SETTLED_WORD, settled_pts_s)):
            bits = _PTS.pack(math.nan if pts_s is None else pts_s)
            self._words[word] = int.from_bytes(bits, "little")

    def _pts(self, word: int) -> float | None:
        pts_s: float = _PTS.unpack(self._words[word].to_bytes(8, "little"))[0]
        return None if math.isnan(pts_s) else pts_s

    def settled_at_close(self) -> float | None:
        """The settled time that the last writer left behind, if it closed the session."""
        try:
            closed = self._words[_STATE_WORD] == WriterState.CLOSED
            return self.watermarks().settled_pts_s if closed else None
        except ControlCorruptError:
            return None

    def begin_epoch(
        self,
        epoch: int,
        text: ControlText,
        *,
        units: int,
        blocks: int,
        first_unit: int,
        settled_pts_s: float | None,
    ) -> None:
        """Announce a new writer. The epoch comes last: readers of the old one see old or new.

        No word stays as it was, so that damage does not gather.
        """
        write_text(self._map, epoch, text)
        self._words[_MAGIC_WORD] = _MAGIC
        self._words[_VERSION_WORD] = FORMAT_VERSION
        self._words[_SESSION_WORD] = self._session_hash
        self._words[_VISIBLE_WORD] = units
        self.set_first_unit(first_unit)
        self._words[_REWRITES_WORD] = 0
        self.set_durable(units=units, blocks=blocks)
        self.set_watermarks(received_pts_s=settled_pts_s, settled_pts_s=settled_pts_s)
        self._words[_PID_WORD] = os.getpid()
        self._words[_STATE_WORD] = WriterState.OPEN
        self._words[_BOOT_WORD] = self._boot
        self._words[_EPOCH_CHECK_WORD] = _check(self._session_hash, epoch)
        self._words[_EPOCH_WORD] = epoch
        self.sync()

    def set_visible(self, unit_count: int) -> None:
        """Publish the count of visible units."""
        self._words[_VISIBLE_WORD] = unit_count

    def set_first_unit(self, first_unit: int) -> None:
        """Publish what is left; the floor record must be durable."""
        self._words[_FIRST_UNIT_WORD] = first_unit

    def announce_rewrite(self) -> None:
        """Tell readers to look which segments were written anew; the new ones must be durable."""
        self._words[_REWRITES_WORD] += 1

    def set_durable(self, *, units: int, blocks: int) -> None:
        """Publish what is durable. A reader may see the two counts apart."""
        self._words[_DURABLE_BLOCKS_WORD] = blocks
        self._words[_DURABLE_UNITS_WORD] = units
        self._words[_DURABLE_CHECK_WORD] = _check(self._session_hash, blocks)

    def set_state(self, state: WriterState) -> None:
        """Publish the writer's state."""
        self._words[_STATE_WORD] = state

    def sync(self) -> None:
        """Wait until the page is on the disk."""
        self._map.flush()

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
        self._map.close()
