"""Appending blocks to a session's segment files: written once, and one sync per block.

A block is acknowledged after its `fdatasync`, never before. At most one block is in flight, so
whatever a crash leaves behind the last acknowledged block is at most one torn block.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kvstore.directio import appends_direct, refuses_direct, write_direct
from kvstore.diskio import Buffer, DiskIO, write_early, write_fully
from kvstore.dropping import SegmentQueue
from kvstore.encoding import Layout
from kvstore.errors import StoreFullError
from kvstore.floor import Floor
from kvstore.format import PAGE_BYTES, BlockHeader, SegmentHeader, page_align
from kvstore.freeing import Freeing
from kvstore.hottail import HotRecord
from kvstore.limits import BlockLimits
from kvstore.paths import segment_path, session_hash
from kvstore.pins import PinsNow
from kvstore.scan import LogScan
from kvstore.space import Space
from kvstore.table import join_table

logger = logging.getLogger(__name__)

_ZEROS = bytes(PAGE_BYTES)


def _padding(byte_count: int) -> memoryview:
    return memoryview(_ZEROS)[: page_align(byte_count) - byte_count]


class BlockLog:
    """The end of a recovered log. After any OSError it must not be used again."""

    def __init__(
        self,
        folder: Path,
        session_id: str,
        *,
        layout: Layout,
        limits: BlockLimits,
        epoch: int,
        scan: LogScan,
        space: Space,
        announce_floor: Callable[[int], None],
        announce_rewrite: Callable[[], None],
        pinned: PinsNow,
        check_owned: Callable[[], None],
        io: DiskIO,
        kept: bool = False,
    ) -> None:
        """Take over the end of a log.

        Args:
            announce_floor, announce_rewrite, pinned, check_owned: see `kvstore.freeing.Freeing`.
            kept: units go to a tier of memory when they leave the hot tail.
        """
        self._folder = folder
        self._session_id = session_id
        self._session_hash = session_hash(session_id)
        self._layout = layout
        self._limits = limits
        self._epoch = epoch
        self._space = space
        self._io = io
        self._direct = appends_direct(limits.disk_io, folder, io, kept=kept)
        self._segments = SegmentQueue(scan.blocks)
        if limits.retain_s:
            self._segments.learn_times(folder, scan.blocks)
        self.block_count = scan.block_count
        self.unit_count = scan.unit_count
        self._previous_hash = scan.chain_hash
        self._freeing = Freeing(
            folder,
            self._segments,
            limits=limits,
            epoch=epoch,
            space=space,
            pinned=pinned,
            check_owned=check_owned,
            announce_floor=announce_floor,
            announce_rewrite=announce_rewrite,
            io=io,
        )
        self._number = scan.kept_segment
        # An epoch begins a segment of its own, with its first block: in the one before, a writer
        # that comes too late may still write.
        self._fd = -1
        self._offset = self._allocated = 0

    def append(self, records: Sequence[HotRecord], resume: bytes) -> bool:
        """Write a block of the records and wait until it is on the disk.

        Returns:
            Whether it begins a segment.

        Raises:
            StoreFullError: no room; nothing was written and the same block may be tried again.
            OSError: the disk failed; what it holds is unknown until recovery.
        """
        header, table = self._header(records, resume)
        span = header.span_bytes(self._layout)
        starts = self._fd < 0 or self._offset + span > self._limits.segment_stop_bytes
        if starts or self._segments.is_long(records[0].unit.first_pts_s, self._limits.retain_s):
            starts = True
            self._start_segment(span, header.first_unit)
        elif self._offset + span > self._allocated:
            self._grow(span)
        thumbnails = [record.unit.thumbnail_jpeg for record in records]
        meta_bytes = header.table_bytes + header.thumbnail_bytes + header.resume_bytes
        buffers: list[Buffer] = [header.pack(), table, *thumbnails, resume, _padding(meta_bytes)]
        buffers.extend(self._layer_buffers(records, header.token_count))
        packed_hash = int.from_bytes(bytes(buffers[0])[-8:], "little")
        self._write([part for part in buffers if len(part)])
        self._io.fdatasync(self._fd)
        self._offset += span
        last_pts_s = records[-1].unit.last_pts_s
        self._segments.add(
            header.token_count,
            first_pts_s=records[0].unit.first_pts_s,
            last_pts_s=last_pts_s,
            written_unix_s=header.created_unix_s,
        )
        self._previous_hash = packed_hash
        self.block_count += 1
        self.unit_count += len(records)
        return starts

    def drop_expired(self, newest_pts_s: float) -> None:
        """Drop what is too old beside a unit of this time; see `Freeing.drop_expired`."""
        if self._limits.retain_s:
            self._freeing.drop_expired(newest_pts_s)

    def _write(self, buffers: Sequence[Buffer]) -> None:
        """Write at the end of the log. The sync that makes it durable is the same either way."""
        if self._direct:
            try:
                write_direct(self._io, self._fd, buffers, self._offset)
            except OSError as error:
                if not refuses_direct(error):
                    raise
                self._write_buffered_from_now_on(error)
            else:
                return
        write_early(self._io, self._fd, buffers, self._offset)

    def _set_direct(self) -> None:
        if self._direct:
            try:
                self._io.set_direct(self._fd, direct=True)
            except OSError as error:
                if not refuses_direct(error):
                    raise
                self._write_buffered_from_now_on(error)

    def _write_buffered_from_now_on(self, error: OSError) -> None:
        self._direct = False
        self._io.set_direct(self._fd, direct=False)
        logger.warning(
            "the disk takes no direct writes, blocks are written through the page cache",
            extra={"session": self._session_id, "error": str(error)},
        )

    def _header(self, records: Sequence[HotRecord], resume: bytes) -> tuple[BlockHeader, bytes]:
        table = join_table([record.part for record in records])
        header = BlockHeader(
            session_hash=self._session_hash,
            layout_fingerprint=self._layout.fingerprint,
            sequence=self.block_count,
            epoch=self._epoch,
            durable_block_count=self.block_count,
            previous_hash=self._previous_hash,
            first_unit=records[0].unit.index,
            unit_count=len(records),
            token_count=sum(record.unit.token_count for record in records),
            table_bytes=len(table),
            table_hash=xxhash.xxh3_64_intdigest(table),
            thumbnail_bytes=sum(len(record.unit.thumbnail_jpeg) for record in records),
            resume_bytes=len(resume),
            resume_hash=xxhash.xxh3_64_intdigest(resume),
            created_unix_s=time.time(),
        )
        return header, table

    def _layer_buffers(self, records: Sequence[HotRecord], token_count: int) -> Iterator[Buffer]:
        padding = _padding(self._layout.extent_bytes(token_count, len(records)))
        for layer in range(self._layout.geometry.layer_count):
            for record in records:
                extent: np.ndarray[Any, Any] = record.extents[layer]
                yield extent.data
            yield padding

    def _reserve(self, fd: int, allocated: int, stop: int) -> int:
        """Allocate the file up to `stop`, in steps, and return the new size."""
        step = self._limits.preallocate_step_bytes(stop - allocated)
        size = max(stop, min(-(-stop // step) * step, self._limits.segment_stop_bytes))
        needed = size - allocated
        try:
            with self._space.claim(needed):
                self._io.fallocate(fd, allocated, needed)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self.full_error(needed) from error
        return size

    def full_error(self, needed_bytes: int = 0) -> StoreFullError:
        """The error for a disk that filled up in the middle of a write."""
        free_bytes = self._io.free_bytes(self._folder)
        return StoreFullError(self._folder, needed_bytes, free_bytes, self._limits.min_free_bytes)

    def _grow(self, span: int) -> None:
        self._allocated = self._reserve(self._fd, self._allocated, self._offset + span)

    def _start_segment(self, span: int, first_unit: int) -> None:
        """Open the next segment and make it durable before any block lies in it."""
        number = self._number + 1
        path = segment_path(self._folder, number)
        fd = self._io.create(path)
        try:
            allocated = self._reserve(fd, 0, PAGE_BYTES + span)
            header = SegmentHeader(
                session_id=self._session_id,
                session_hash=self._session_hash,
                epoch=self._epoch,
                layout=self._layout,
                first_block=self.block_count,
                first_unit=first_unit,
                previous_hash=self._previous_hash,
                created_unix_s=time.time(),
            )
            write_fully(self._io, fd, [header.pack()], 0)
            self._io.fsync(fd)
            self._io.fsync_folder(self._folder)
        except StoreFullError:
            os.close(fd)
            self._io.unlink(path)
            raise
        except BaseException:
            os.close(fd)
            raise
        self._segments.begin(
            Floor(
                first_segment=number,
                first_block=self.block_count,
                first_unit=first_unit,
                previous_hash=self._previous_hash,
            )
        )
        old_fd, old_offset, old_allocated = self._fd, self._offset, self._allocated
        self._fd, self._number = fd, number
        self._offset, self._allocated = PAGE_BYTES, allocated
        self._set_direct()
        self._close_segment(old_fd, old_offset, old_allocated)

    def _close_segment(self, fd: int, offset: int, allocated: int) -> None:
        """Give back what was reserved and not used. A crash in between costs only space."""
        if fd < 0:
            return
        try:
            if allocated > offset:
                self._io.truncate(fd, offset)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the last segment; reserved space behind the last block is given back."""
        fd, self._fd = self._fd, -1
        self._close_segment(fd, self._offset, self._allocated)

    def abandon(self) -> None:
        """Close the descriptor and touch nothing: after a failure the file is recovery's."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
