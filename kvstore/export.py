"""Writing a session out as one archive, also while a service reads and writes it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import xxhash

from kvstore.archive import HEAD_NAME, MANIFEST_NAME, ArchiveHead, pack_manifest
from kvstore.blockread import BlockPlace, verify_block
from kvstore.errors import BlockCorruptError
from kvstore.format import FORMAT_VERSION, PAGE_BYTES, BlockHeader
from kvstore.paths import RECORD_NAME, segment_path, session_folder
from kvstore.reader import SessionReader
from kvstore.scan import read_page
from kvstore.session import load_session

Progress = Callable[[int, int], None]
"""Called with (bytes done so far, bytes in all)."""

_TRIES = 5


@dataclass(frozen=True, slots=True, eq=False)
class HeldSegment:
    """A segment that stays readable, whatever is dropped or written anew meanwhile."""

    path: Path
    fd: int
    places: tuple[BlockPlace, ...]

    @property
    def size(self) -> int:
        """Bytes up to the end of the last durable block."""
        return self.places[-1].stop


class _Reading:
    """A file object of a segment's first bytes, which checksums what is read from it."""

    def __init__(self, segment: HeldSegment, read: Callable[[int], None]) -> None:
        self._segment = segment
        self._offset = 0
        self._read = read
        self.checksum = xxhash.xxh3_64()

    def read(self, size: int) -> bytes:
        data = os.pread(self._segment.fd, size, self._offset)
        self._offset += len(data)
        self.checksum.update(data)
        self._read(len(data))
        return data


def hold_segments(root: Path, session_id: str, stack: ExitStack) -> list[HeldSegment]:
    """Open every segment with the durable blocks as of now; `stack` closes them.

    Raises:
        SessionNotFoundError: there is no such session.
        BlockCorruptError: a durable block's header or unit table is damaged.
        OSError: more segments than files may be open.
    """
    folder = session_folder(root, session_id)
    for attempt in range(_TRIES):
        reader = SessionReader.open(root, session_id)
        try:
            places = reader.places
        finally:
            reader.close()
        held = ExitStack()
        try:
            segments = list(_open_segments(folder, places, held))
        except (FileNotFoundError, _ReplacedError):
            held.close()  # dropped, or written anew, since the headers were read
            if attempt == _TRIES - 1:
                raise
            continue
        except BaseException:
            held.close()
            raise
        stack.enter_context(held)
        return segments
    raise AssertionError("the last attempt returns or raises")


class _ReplacedError(BlockCorruptError):
    """Internal: the file holds other blocks than those that were looked up."""


def _open_segments(
    folder: Path, places: Sequence[BlockPlace], stack: ExitStack
) -> Iterator[HeldSegment]:
    for number, group in groupby(places, key=lambda place: place.segment_number):
        path = segment_path(folder, number)
        fd = os.open(path, os.O_RDONLY)
        stack.callback(os.close, fd)
        found = tuple(group)
        for place in found:
            header = BlockHeader.unpack(read_page(fd, place.offset), path)
            if header is None or header.hash != place.header.hash:
                reason = f"its header in {path.name} changed while it was read"
                raise _ReplacedError(folder.name, place.header.sequence, reason)
        yield HeldSegment(path, fd, found)


def export_session(
    root: Path, session_id: str, out: BinaryIO, progress: Progress | None = None
) -> ArchiveHead:
    """Write the durable part of a session, as of now, to `out`; every block is verified first.

    Args:
        out: written from front to end; it may be a pipe.
        progress: called now and then.

    Raises:
        SessionNotFoundError: there is no such session.
        SessionRecordCorruptError, BlockCorruptError: it is damaged; what was written so far is
            a torn archive, and no import takes it.
        OSError: `out` cannot be written, or a segment cannot be read.
    """
    folder = session_folder(root, session_id)
    load_session(root, session_id)
    record = (folder / RECORD_NAME).read_bytes()
    with ExitStack() as stack:
        segments = hold_segments(root, session_id, stack)
        head = _describe(session_id, len(record), segments)
        done = 0

        def count(byte_count: int) -> None:
            nonlocal done
            done += byte_count
            if progress is not None:
                progress(done, head.byte_count)

        checksums = {}
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for name, data in ((HEAD_NAME, head.pack()), (RECORD_NAME, record)):
                checksums[name] = _add_bytes(tar, name, data)
            for segment in segments:
                _verify(session_id, segment)
                reading = _Reading(segment, count)
                # Reading gives fewer bytes than asked for only at the file's end: then this raises.
                tar.addfile(_member(segment.path.name, segment.size), reading)  # type: ignore[arg-type]
                checksums[segment.path.name] = reading.checksum.hexdigest()
            _add_bytes(tar, MANIFEST_NAME, pack_manifest(checksums))
    return head


def _describe(session_id: str, record_bytes: int, segments: Sequence[HeldSegment]) -> ArchiveHead:
    first = segments[0].places[0] if segments else None
    last = segments[-1].places[-1].header if segments else None
    return ArchiveHead(
        session_id=session_id,
        store_format_version=FORMAT_VERSION,
        first_unit=first.header.first_unit if first else 0,
        unit_count=last.first_unit + last.unit_count if last else 0,
        block_count=sum(len(segment.places) for segment in segments),
        element=first.layout.geometry.element if first else None,
        encoding=first.layout.encoding if first else None,
        files=(
            (RECORD_NAME, record_bytes),
            *((segment.path.name, segment.size) for segment in segments),
        ),
    )


def _verify(session_id: str, segment: HeldSegment) -> None:
    if len(read_page(segment.fd, 0)) != PAGE_BYTES:
        raise BlockCorruptError(session_id, segment.places[0].header.sequence, "its file is cut")
    for place in segment.places:
        fault = verify_block(segment.fd, place)
        if fault is not None:
            raise BlockCorruptError(session_id, place.header.sequence, fault)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> str:
    tar.addfile(_member(name, len(data)), BytesIO(data))
    return xxhash.xxh3_64_hexdigest(data)
