"""Reading the parts of one block that are not keys and values, and verifying all of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import xxhash

from kvstore.format import PAGE_BYTES, BlockHeader
from kvstore.geometry import Geometry
from kvstore.table import UnitTable


class TornBlockError(Exception):
    """Internal: a part of the block does not match the header's hash. The text names the part."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A block's header, place and unit table; enough to read any of its units."""

    header: BlockHeader
    segment_number: int
    offset: int
    table: UnitTable

    def extent_offset(self, geometry: Geometry, layer: int, position: int) -> int:
        """Where, in the segment file, keys and values of the block's `position`-th unit start."""
        before = int(self.table.token_starts[position])
        start = self.offset + self.header.layer_offset(geometry, layer)
        return start + geometry.extent_bytes(before)


def read_table(fd: int, offset: int, header: BlockHeader, geometry: Geometry) -> UnitTable:
    """Read and check the unit table of the block at `offset`.

    Raises:
        TornBlockError: it does not match the header.
    """
    data = os.pread(fd, header.table_bytes, offset + PAGE_BYTES)
    if len(data) != header.table_bytes or xxhash.xxh3_64_intdigest(data) != header.table_hash:
        raise TornBlockError("the unit table does not match its checksum")
    try:
        return UnitTable.parse(
            data, unit_count=header.unit_count, layer_count=geometry.layer_count
        )
    except ValueError as error:
        raise TornBlockError(str(error)) from error


def read_thumbnail(fd: int, block: Block, position: int) -> bytes:
    """Read and check the JPEG of the block's `position`-th unit.

    Raises:
        TornBlockError: it does not match the unit table.
    """
    row = block.table.rows[position]
    start = block.offset + PAGE_BYTES + block.header.table_bytes
    start += int(block.table.thumbnail_starts[position])
    data = os.pread(fd, int(row["thumbnail_bytes"]), start)
    if xxhash.xxh3_64_intdigest(data) != int(row["thumbnail_hash"]):
        unit = int(row["index"])
        raise TornBlockError(f"the thumbnail of unit {unit} does not match its checksum")
    return data


def read_resume(fd: int, offset: int, header: BlockHeader) -> bytes:
    """Read and check the resume blob of the block at `offset`.

    Raises:
        TornBlockError: it does not match the header.
    """
    start = offset + PAGE_BYTES + header.table_bytes + header.thumbnail_bytes
    data = os.pread(fd, header.resume_bytes, start)
    if len(data) != header.resume_bytes or xxhash.xxh3_64_intdigest(data) != header.resume_hash:
        raise TornBlockError("the resume blob does not match its checksum")
    return data


def damaged_extents(fd: int, block: Block, geometry: Geometry) -> list[tuple[int, int]]:
    """The (position in the block, layer) of every extent that does not match its checksum."""
    damaged = []
    starts = block.table.token_starts
    for layer in range(geometry.layer_count):
        layer_bytes = geometry.extent_bytes(block.header.token_count)
        start = block.offset + block.header.layer_offset(geometry, layer)
        data = memoryview(os.pread(fd, layer_bytes, start))
        for position in range(block.header.unit_count):
            first = geometry.extent_bytes(int(starts[position]))
            last = geometry.extent_bytes(int(starts[position + 1]))
            checksum = int(block.table.checksums[position, layer])
            if xxhash.xxh3_64_intdigest(data[first:last]) != checksum:
                damaged.append((position, layer))
    return damaged


def verify_block(fd: int, offset: int, header: BlockHeader, geometry: Geometry) -> str | None:
    """Read every byte of the block that matters; say what is damaged, or None."""
    try:
        table = read_table(fd, offset, header, geometry)
        block = Block(header, -1, offset, table)
        for position in range(header.unit_count):
            read_thumbnail(fd, block, position)
        read_resume(fd, offset, header)
    except TornBlockError as error:
        return str(error)
    damaged = damaged_extents(fd, block, geometry)
    if damaged:
        position, layer = damaged[0]
        unit = header.first_unit + position
        return f"unit {unit}, layer {layer} does not match its checksum"
    return None
