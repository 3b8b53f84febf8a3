"""Reading everything a store holds and saying what is damaged.

Safe beside writers and readers: it changes nothing, and what no header and no CTL page proves to
have been acknowledged is a torn or unfinished tail, not damage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvstore.blockread import (
    BlockPlace,
    TornBlockError,
    damaged_extents,
    read_block,
    read_resume,
    read_thumbnail,
)
from kvstore.control import ControlPage
from kvstore.encoding import Layout
from kvstore.errors import KVStoreError
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader
from kvstore.paths import (
    RECORD_NAME,
    TOMBSTONE_NAME,
    segment_numbers,
    segment_path,
    session_hash,
    sessions_folder,
)
from kvstore.scan import follows, read_page
from kvstore.session import load_session

Progress = Callable[[int, int], None]
"""Called with (bytes read so far, bytes in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is not as it was written."""

    session_id: str
    reason: str
    block_index: int | None = None
    unit_index: int | None = None
    layer_index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """What `verify_store` read and found."""

    session_count: int
    block_count: int
    unit_count: int
    byte_count: int
    damage: tuple[Damage, ...]


class _SessionCheck:
    """Verifies one session and goes on behind damage, so that all of it is named."""

    def __init__(self, root: Path, session_id: str, read: Callable[[int], None]) -> None:
        self._root = root
        self._session_id = session_id
        self._session_hash = session_hash(session_id)
        self._folder = sessions_folder(root) / session_id
        self._read = read
        self._previous: BlockHeader | None = None
        """The last intact header, None behind damage."""
        self._next_index = 0
        self._proven = 0
        self._suspects: list[Damage] = []
        self.damage: list[Damage] = []
        self.block_count = 0
        self.unit_count = 0

    def run(self) -> None:
        """Verify the record and every acknowledged block."""
        try:
            if (self._folder / RECORD_NAME).exists():
                load_session(self._root, self._session_id)
            control = ControlPage.open(self._folder, self._session_hash)
            if control is not None:
                self._proven = control.proven_block_count()
                control.close()
        except KVStoreError as error:
            self.damage.append(Damage(session_id=self._session_id, reason=str(error)))
        for number in segment_numbers(self._folder):
            path = segment_path(self._folder, number)
            try:
                with open(path, "rb") as file:
                    self._check_segment(file.fileno(), path, number)
            except KVStoreError as error:
                self.damage.append(Damage(session_id=self._session_id, reason=str(error)))
        if self._proven > self._next_index:
            self._suspect("acknowledged, but not there")
        self.damage.extend(
            found for found in self._suspects if (found.block_index or 0) < self._proven
        )

    def _suspect(self, reason: str, unit: int | None = None, layer: int | None = None) -> None:
        found = Damage(
            session_id=self._session_id,
            reason=reason,
            block_index=self._next_index,
            unit_index=unit,
            layer_index=layer,
        )
        self._suspects.append(found)

    def _check_segment(self, fd: int, path: Path, number: int) -> None:
        segment = SegmentHeader.unpack(read_page(fd, 0), path)
        if segment is not None and segment.session_hash != self._session_hash:
            reason = f"{path.name} belongs to session {segment.session_id!r}"
            self.damage.append(Damage(session_id=self._session_id, reason=reason))
            return
        if segment is None:
            self._suspect(f"the header of {path.name} is damaged")
            self._previous = None
            return
        self._proven = max(self._proven, segment.first_block)
        if segment.first_block > self._next_index:
            self._suspect(f"missing before {path.name}")
            self._previous, self._next_index = None, segment.first_block
        offset = PAGE_BYTES
        size = os.fstat(fd).st_size
        damaged_here = False
        while offset < size:
            page = read_page(fd, offset)
            header = BlockHeader.unpack(page, path)
            if header is not None and header.session_hash == self._session_hash:
                stop = self._check_block(fd, header, segment.layout, number, offset)
                damaged_here = False
            else:
                if any(page) and not damaged_here:
                    self._suspect("its header is damaged")
                    self._previous, damaged_here = None, True
                stop = offset + PAGE_BYTES
            self._read(stop - offset)
            offset = stop

    def _check_block(
        self, fd: int, header: BlockHeader, layout: Layout, number: int, offset: int
    ) -> int:
        """Verify a block with an intact header and return where it stops."""
        place = BlockPlace(header, layout, number, offset)
        self._proven = max(self._proven, header.durable_block_count)
        expected = header.sequence == self._next_index
        if self._previous is not None and not (expected and follows(header, self._previous)):
            self._suspect("what follows does not belong behind the block before it")
        self._next_index = header.sequence
        try:
            block = read_block(fd, place)
            for position in range(header.unit_count):
                read_thumbnail(fd, block, position)
            read_resume(fd, place)
        except TornBlockError as error:
            self._suspect(str(error))
        else:
            for position, layer in damaged_extents(fd, block):
                unit = header.first_unit + position
                self._suspect("keys and values do not match their checksum", unit, layer)
        self.block_count += 1
        self.unit_count += header.unit_count
        self._next_index = header.sequence + 1
        self._previous = header
        return place.stop


def verify_store(root: Path, progress: Progress | None = None) -> StoreReport:
    """Read every byte of every session and report what does not match its checksum.

    Args:
        progress: called now and then; bytes in all may grow a little under a live writer.
    """
    folders = _session_folders(root)
    total = sum(path.stat().st_size for folder in folders for path in folder.glob("seg-*.kvs"))
    done = 0

    def read(byte_count: int) -> None:
        nonlocal done
        done += byte_count
        if progress is not None:
            progress(done, max(done, total))

    checks = []
    for folder in folders:
        check = _SessionCheck(root, folder.name, read)
        try:
            check.run()
        except FileNotFoundError:
            if folder.is_dir() and not (folder / TOMBSTONE_NAME).exists():
                raise
            continue  # deleted meanwhile
        checks.append(check)
    return StoreReport(
        session_count=len(checks),
        block_count=sum(check.block_count for check in checks),
        unit_count=sum(check.unit_count for check in checks),
        byte_count=done,
        damage=tuple(found for check in checks for found in check.damage),
    )


def _session_folders(root: Path) -> list[Path]:
    try:
        folders = sorted(sessions_folder(root).iterdir())
    except FileNotFoundError:
        return []
    return [
        folder for folder in folders if folder.is_dir() and not (folder / TOMBSTONE_NAME).exists()
    ]
