"""Making a session's log whole again before a writer builds on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kvstore.blockread import TornBlockError, read_block, read_resume
from kvstore.diskio import DiskIO
from kvstore.dropping import remove_below
from kvstore.errors import BlockCorruptError
from kvstore.paths import segment_path
from kvstore.rewriting import sweep_aside
from kvstore.scan import LogScan


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a writer found and where it goes on."""

    epoch: int
    durable_unit_count: int
    durable_block_count: int
    first_unit: int
    """Units before it were dropped."""
    durable_pts_s: float | None
    """last_pts_s of the last durable unit."""
    resume: bytes | None
    """The blob that was appended with the last durable unit."""
    torn_bytes: int
    """Bytes of a torn, never acknowledged tail that were cut."""


def repair_log(folder: Path, scan: LogScan, io: DiskIO) -> None:
    """Cut what lies behind the log's end and make what was accepted durable.

    Safe to be interrupted and run again: the cut only removes what the next scan would cut too.
    """
    surplus = [number for number in scan.segment_numbers if number > scan.kept_segment]
    for number in reversed(surplus):
        io.unlink(segment_path(folder, number))
    if scan.blocks:
        fd = os.open(segment_path(folder, scan.kept_segment), os.O_RDWR)
        try:
            if os.fstat(fd).st_size > scan.kept_offset:
                io.truncate(fd, scan.kept_offset)
            # A complete block may be here that was never acknowledged: it is from now on.
            io.fsync(fd)
        finally:
            os.close(fd)
    if scan.segment_numbers:
        io.fsync_folder(folder)
    sweep_aside(folder, io)
    remove_below(folder, scan.floor, io)


def describe_log(folder: Path, session_id: str, scan: LogScan, epoch: int) -> Recovery:
    """Read what a restart needs from the last durable block.

    Raises:
        BlockCorruptError: that block's meta slice is damaged.
    """
    durable_pts_s: float | None = None
    resume: bytes | None = None
    if scan.blocks:
        place = scan.blocks[-1]
        with open(segment_path(folder, place.segment_number), "rb") as file:
            try:
                table = read_block(file.fileno(), place).table
                resume = read_resume(file.fileno(), place)
            except TornBlockError as error:
                raise BlockCorruptError(session_id, place.header.sequence, str(error)) from error
        durable_pts_s = float(table.rows["last_pts_s"][-1])
    return Recovery(
        epoch=epoch,
        durable_unit_count=scan.unit_count,
        durable_block_count=scan.block_count,
        first_unit=scan.floor.first_unit,
        durable_pts_s=durable_pts_s,
        resume=resume,
        torn_bytes=scan.torn_bytes,
    )
