"""Taking a session in from an archive: all of it, verified, or nothing."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import xxhash

from kvstore.archive import (
    HEAD_NAME,
    MANIFEST_NAME,
    MAX_JSON_BYTES,
    ArchiveHead,
    BadArchiveError,
    check_manifest,
    segment_number,
)
from kvstore.blockread import verify_block
from kvstore.deletion import finish_deletion
from kvstore.diskio import DiskIO, make_folders
from kvstore.errors import KVStoreError, SessionExistsError
from kvstore.floor import Floor, write_floor
from kvstore.format import SegmentHeader
from kvstore.incoming import made_aside
from kvstore.limits import BlockLimits
from kvstore.paths import (
    TOMBSTONE_NAME,
    segment_path,
    session_folder,
    session_hash,
    sessions_folder,
)
from kvstore.reader import SessionReader
from kvstore.renaming import rename_log
from kvstore.scan import read_page
from kvstore.session import load_session, update_session
from kvstore.space import Space

Progress = Callable[[int, int], None]
"""Called with (bytes done so far, bytes in all)."""

_CHUNK_BYTES = 4 << 20


def import_session(
    root: Path,
    source: BinaryIO,
    *,
    session_id: str | None = None,
    limits: BlockLimits | None = None,
    finish: Callable[[Path, str], None] | None = None,
    progress: Progress | None = None,
) -> ArchiveHead:
    """Make a session from an archive; it appears in the store at the end, whole and durable.

    Args:
        source: read from front to end; it may be a pipe.
        session_id: its name here; without it, the one that it had.
        limits: the disk that is left alone and the budgets; without them, all the disk.
        finish: called with (folder of a store that holds just this session, its name) before it
            appears, for what is derived from the blocks.
        progress: called now and then.

    Returns:
        What the archive says of itself.

    Raises:
        BadArchiveError: it is no archive of a session, is torn or damaged, holds something
            else beside it, or one of its blocks is damaged.
        SessionExistsError: the name is taken.
        InvalidSessionIdError: `session_id` cannot name a session.
        StoreFullError: there is no room, or a budget does not allow it.
    """
    if session_id is not None:
        _check_free_name(root, session_id)
    io = DiskIO()
    make_folders(io, sessions_folder(root))
    with made_aside(root) as aside:
        head = _unpack(root, source, aside, session_id, limits, progress or _silent)
        name = session_id or head.session_id
        _settle(aside, head, name, io)
        if finish is not None:
            finish(aside, name)
        io.fsync_folder(session_folder(aside, name))
        if (session_folder(root, name) / TOMBSTONE_NAME).exists():
            finish_deletion(root, name)
        try:
            os.rename(session_folder(aside, name), session_folder(root, name))
        except OSError as error:
            raise SessionExistsError(name) from error
        io.fsync_folder(sessions_folder(root))
    return head


def _silent(done: int, total: int) -> None:
    """Nobody looks."""


def _check_free_name(root: Path, session_id: str) -> None:
    folder = session_folder(root, session_id)
    if folder.exists() and not (folder / TOMBSTONE_NAME).exists():
        raise SessionExistsError(session_id)


def _unpack(
    root: Path,
    source: BinaryIO,
    aside: Path,
    session_id: str | None,
    limits: BlockLimits | None,
    progress: Progress,
) -> ArchiveHead:
    """Read the archive into a folder under `aside`, and check it against its manifest."""
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            unpacking = _Unpacking(tar, progress)
            head = unpacking.head()
            if session_id is None:
                _check_free_name(root, head.session_id)
            _check_room(root, aside, head.byte_count, limits)
            unpacking.files(head, session_folder(aside, head.session_id))
            return head
    except (tarfile.TarError, EOFError) as error:
        raise BadArchiveError(f"it is torn, or no archive at all ({error})") from error


class _Unpacking:
    """One pass over an archive, in the order that its head names."""

    def __init__(self, tar: tarfile.TarFile, progress: Progress) -> None:
        self._tar = tar
        self._progress = progress
        self._checksums: dict[str, str] = {}

    def head(self) -> ArchiveHead:
        member = self._tar.next()
        if member is None or member.name != HEAD_NAME:
            raise BadArchiveError("it is not one of a session")
        return ArchiveHead.unpack(self._small(member))

    def files(self, head: ArchiveHead, folder: Path) -> None:
        folder.mkdir(parents=True)
        done = 0
        for name, size in head.files:
            member = self._next(name)
            if member.size != size:
                raise BadArchiveError(f"{name} has {member.size} bytes, {size} were announced")
            done = self._extract(member, folder / name, done, head.byte_count)
        check_manifest(self._small(self._next(MANIFEST_NAME)), self._checksums)
        surplus = self._tar.next()
        if surplus is not None:
            raise BadArchiveError(f"it holds {surplus.name!r} beside the session")

    def _next(self, name: str) -> tarfile.TarInfo:
        """The next member, which must be the plain file of this name: no path, link or device."""
        member = self._tar.next()
        if member is None:
            raise BadArchiveError(f"it is torn: {name} is missing")
        if member.name != name or not member.isreg() or member.issparse():
            raise BadArchiveError(f"it holds {member.name!r} where {name} belongs")
        return member

    def _small(self, member: tarfile.TarInfo) -> bytes:
        file = self._tar.extractfile(member) if member.isreg() else None
        if file is None or member.size > MAX_JSON_BYTES:
            raise BadArchiveError(f"{member.name} is not a file of a sensible size")
        data = file.read()
        if len(data) != member.size:
            raise BadArchiveError(f"it is torn in {member.name}")
        self._checksums[member.name] = xxhash.xxh3_64_hexdigest(data)
        if member.name == MANIFEST_NAME:
            del self._checksums[member.name]
        return data

    def _extract(self, member: tarfile.TarInfo, path: Path, done: int, total: int) -> int:
        file = self._tar.extractfile(member)
        assert file is not None
        checksum = xxhash.xxh3_64()
        left = member.size
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb", buffering=0) as out:
            while left:
                data = file.read(min(left, _CHUNK_BYTES))
                if not data:
                    raise BadArchiveError(f"it is torn in {member.name}")
                checksum.update(data)
                view = memoryview(data)
                while view:
                    view = view[out.write(view) :]
                left -= len(data)
                done += len(data)
                self._progress(done, total)
            os.fsync(fd)
        self._checksums[member.name] = checksum.hexdigest()
        return done


def _check_room(root: Path, aside: Path, needed_bytes: int, limits: BlockLimits | None) -> None:
    limits = limits or BlockLimits(min_free_bytes=0)
    space = Space(
        root,
        aside,
        budget=limits.budget,
        min_free_bytes=limits.min_free_bytes,
        io=DiskIO(),
    )
    with space.claim(needed_bytes):
        pass


def _settle(aside: Path, head: ArchiveHead, name: str, io: DiskIO) -> None:
    """Give the unpacked session its name and its floor, and verify all of it."""
    try:
        if name != head.session_id:
            _rename(aside, head, name, io)
        _restore_floor(session_folder(aside, name), head, io)
        _verify(aside, head, name)
    except (KVStoreError, ValueError, OverflowError) as error:
        raise BadArchiveError(str(error)) from error


def _rename(aside: Path, head: ArchiveHead, name: str, io: DiskIO) -> None:
    """Change the name in the record and in every header, and move the folder."""
    old, new = session_folder(aside, head.session_id), session_folder(aside, name)
    record = replace(load_session(aside, head.session_id), session_id=name)
    rename_log(old, [segment_number(file) for file, _ in head.files[1:]], name, io)
    os.rename(old, new)
    update_session(aside, record)


def _restore_floor(folder: Path, head: ArchiveHead, io: DiskIO) -> None:
    """Say again what was dropped: it follows from the first segment that is there."""
    if len(head.files) == 1:
        return
    name = head.files[1][0]
    with open(folder / name, "rb") as file:
        header = SegmentHeader.unpack(read_page(file.fileno(), 0), folder / name)
    if header is None:
        raise BadArchiveError(f"the header of {name} is damaged")
    if header.first_block == 0:
        return
    floor = Floor(
        first_segment=segment_number(name),
        first_block=header.first_block,
        first_unit=header.first_unit,
        previous_hash=header.previous_hash,
    )
    write_floor(folder, session_hash(folder.name), floor, io)


def _verify(aside: Path, head: ArchiveHead, name: str) -> None:
    """Check the record, the chain of blocks and every byte of every block."""
    load_session(aside, name)
    reader = SessionReader.open(aside, name)
    try:
        unit_count, places = reader.snapshot().unit_count, reader.places
    finally:
        reader.close()
    if (unit_count, len(places)) != (head.unit_count, head.block_count):
        raise BadArchiveError(
            f"it announces {head.unit_count} units in {head.block_count} blocks, "
            f"its blocks hold {unit_count} in {len(places)}"
        )
    for place in places:
        path = segment_path(session_folder(aside, name), place.segment_number)
        with open(path, "rb") as file:
            fault = verify_block(file.fileno(), place)
        if fault is not None:
            raise BadArchiveError(f"block {place.header.sequence} is damaged: {fault}")
