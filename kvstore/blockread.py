"""Reading the parts of one block, each checked, and verifying all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from kvstore.encoding import Layout
from kvstore.format import PAGE_BYTES, BlockHeader
from kvstore.table import UnitTable


class TornBlockError(Exception):
    """Internal: a part of the block does not match the header's hash. The text names the part."""


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """A block and where it lies."""

    header: BlockHeader
    layout: Layout
    segment_number: int
    offset: int

    @property
    def stop(self) -> int:
        """Where the next block goes."""
        return self.offset + self.header.span_bytes(self.layout)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A block's place and unit table; enough to read any of its units."""

    place: BlockPlace
    table: UnitTable
    token_counts: tuple[int, ...] = field(init=False)
    """Of the units."""
    # Reckoned once: every slice that is read asks for its offset.
    _layer_span: int = field(init=False)
    _unit_offsets: tuple[int, ...] = field(init=False)
    """Of the units in the first layer, from the start of the file."""

    def __post_init__(self) -> None:
        place, layout = self.place, self.place.layout
        first = place.offset + place.header.layer_offset(layout, 0)
        offsets = [
            first + layout.extent_bytes(before, position)
            for position, before in enumerate(self.table.token_starts.tolist())
        ]
        span = place.header.layer_offset(layout, 1) - place.header.layer_offset(layout, 0)
        counts = tuple(self.table.rows["token_count"].tolist())
        object.__setattr__(self, "token_counts", counts)
        object.__setattr__(self, "_layer_span", span)
        object.__setattr__(self, "_unit_offsets", tuple(offsets))

    @property
    def header(self) -> BlockHeader:
        """The block's header."""
        return self.place.header

    def extent_offset(self, layer: int, position: int) -> int:
        """Where, in the segment file, keys and values of the block's `position`-th unit start."""
        return self._unit_offsets[position] + layer * self._layer_span


def read_block(fd: int, place: BlockPlace) -> Block:
    """Read and check the unit table of a block.

    Raises:
        TornBlockError: it does not match the header.
    """
    header = place.header
    data = os.pread(fd, header.table_bytes, place.offset + PAGE_BYTES)
    if len(data) != header.table_bytes or xxhash.xxh3_64_intdigest(data) != header.table_hash:
        raise TornBlockError("the unit table does not match its checksum")
    try:
        layer_count = place.layout.geometry.layer_count
        table = UnitTable.parse(data, unit_count=header.unit_count, layer_count=layer_count)
    except ValueError as error:
        raise TornBlockError(str(error)) from error
    return Block(place, table)


def read_slice(
    fd: int, block: Block, layer: int, position: int
) -> tuple[np.ndarray[Any, Any], int]:
    """Read and check keys and values, as they are stored, of the block's `position`-th unit.

    Returns:
        (bytes,) uint8, and their XXH3-64.

    Raises:
        TornBlockError: they do not match the unit table.
    """
    token_count = int(block.table.rows["token_count"][position])
    data = np.empty(block.place.layout.extent_bytes(token_count), np.uint8)
    read_bytes = os.preadv(fd, [data.data], block.extent_offset(layer, position))
    checksum = int(block.table.checksums[position, layer])
    if read_bytes != len(data) or xxhash.xxh3_64_intdigest(data.data) != checksum:
        unit = int(block.table.rows["index"][position])
        raise TornBlockError(f"unit {unit}, layer {layer} does not match its checksum")
    return data, checksum


def read_thumbnail(fd: int, block: Block, position: int) -> bytes:
    """Read and check the JPEG of the block's `position`-th unit.

    Raises:
        TornBlockError: it does not match the unit table.
    """
    row = block.table.rows[position]
    start = block.place.offset + PAGE_BYTES + block.header.table_bytes
    start += int(block.table.thumbnail_starts[position])
    data = os.pread(fd, int(row["thumbnail_bytes"]), start)
    if xxhash.xxh3_64_intdigest(data) != int(row["thumbnail_hash"]):
        unit = int(row["index"])
        raise TornBlockError(f"the thumbnail of unit {unit} does not match its checksum")
    return data


def read_resume(fd: int, place: BlockPlace) -> bytes:
    """Read and check the resume blob of a block.

    Raises:
        TornBlockError: it does not match the header.
    """
    header = place.header
    start = place.offset + PAGE_BYTES + header.table_bytes + header.thumbnail_bytes
    data = os.pread(fd, header.resume_bytes, start)
    if len(data) != header.resume_bytes or xxhash.xxh3_64_intdigest(data) != header.resume_hash:
        raise TornBlockError("the resume blob does not match its checksum")
    return data


def faults_by_layer(fd: int, block: Block) -> Iterator[tuple[int, int, list[int]]]:
    """Read a block's keys and values, layer after layer.

    Yields:
        (layer, bytes read, positions in the block whose extent does not match its checksum).
    """
    layout, header = block.place.layout, block.header
    starts = block.table.token_starts.tolist()
    bounds = [layout.extent_bytes(start, position) for position, start in enumerate(starts)]
    for layer in range(layout.geometry.layer_count):
        data = memoryview(os.pread(fd, bounds[-1], block.extent_offset(layer, 0)))
        checksums = block.table.checksums[:, layer].tolist()
        extents = [
            data[bounds[position] : bounds[position + 1]] for position in range(header.unit_count)
        ]
        faults = [
            position
            for position, extent in enumerate(extents)
            if xxhash.xxh3_64_intdigest(extent) != checksums[position]
        ]
        yield layer, bounds[-1], faults


def damaged_extents(fd: int, block: Block) -> list[tuple[int, int]]:
    """The (position in the block, layer) of every extent that does not match its checksum."""
    return [
        (position, layer)
        for layer, _, positions in faults_by_layer(fd, block)
        for position in positions
    ]


def verify_block(fd: int, place: BlockPlace) -> str | None:
    """Read every byte of the block that matters; say what is damaged first, or None."""
    try:
        block = read_block(fd, place)
        for position in range(place.header.unit_count):
            read_thumbnail(fd, block, position)
        read_resume(fd, place)
    except TornBlockError as error:
        return str(error)
    damaged = damaged_extents(fd, block)
    if damaged:
        position, layer = damaged[0]
        unit = place.header.first_unit + position
        return f"unit {unit}, layer {layer} does not match its checksum"
    return None
