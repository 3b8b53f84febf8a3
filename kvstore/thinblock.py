"""A block written anew with fewer tokens: what stays is copied byte by byte.

The mean keys of units that lost tokens, as they were before, take the place of the resume blob,
which only the last block of a log is asked for, and that one is never thinned. So an index of mean
keys that is made anew is the same index.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash

from kvstore.blockread import Block, TornBlockError, read_resume
from kvstore.diskio import Buffer
from kvstore.encoding import Layout
from kvstore.encoding_codec import decode_keys, select_tokens
from kvstore.format import PAGE_BYTES, BlockHeader, page_align
from kvstore.geometry import Geometry
from kvstore.mean_keys import mean_key
from kvstore.table import table_bytes

Array = np.ndarray[Any, Any]


class DamagedSegmentError(Exception):
    """Internal: keys and values do not match their checksum. The segment is left as it is."""


def row_bytes(geometry: Geometry) -> int:
    """Bytes of the mean keys of one unit."""
    return geometry.layer_count * geometry.kv_head_count * geometry.head_dim * 4


def read_mean_keys(fd: int, block: Block) -> dict[int, Array]:
    """The mean keys, as they were, of the units that lost tokens.

    Returns:
        By the unit's position in the block: (layers, kv_heads * head_dim) float32.

    Raises:
        TornBlockError: they do not match the block's header.
    """
    positions = np.flatnonzero(block.table.rows["thinned_count"]).tolist()
    if not positions:
        return {}
    shape = block.place.layout.geometry
    data = read_resume(fd, block.place)
    if len(data) != len(positions) * row_bytes(shape):
        raise TornBlockError("the mean keys of thinned units are missing")
    rows = np.frombuffer(data, "<f4").reshape(
        len(positions), shape.layer_count, shape.kv_head_count * shape.head_dim
    )
    return dict(zip(positions, rows, strict=True))


def read_extents(fd: int, block: Block, layer: int) -> list[Array]:
    """The stored bytes of each of a block's units in one layer, verified.

    Raises:
        DamagedSegmentError: they are not those that were written.
        OSError: the disk failed.
    """
    layout = block.place.layout
    starts = block.table.token_starts.tolist()
    bounds = [layout.extent_bytes(start, position) for position, start in enumerate(starts)]
    data = np.frombuffer(os.pread(fd, bounds[-1], block.extent_offset(layer, 0)), np.uint8)
    extents = np.split(data, bounds[1:-1])
    for position, extent in enumerate(extents):
        checksum = int(block.table.checksums[position, layer])
        if xxhash.xxh3_64_intdigest(extent.data) != checksum:
            unit = block.header.first_unit + position
            raise DamagedSegmentError(f"unit {unit}, layer {layer}")
    return extents


def stored_keys(layout: Layout, extent: Array, token_count: int) -> Array:
    """(tokens, kv_heads, head_dim) of the storage dtype: a unit's keys in one layer as read."""
    shape = layout.geometry
    keys = np.empty((token_count, shape.kv_head_count, shape.head_dim), shape.storage_dtype)
    decode_keys(layout, extent, keys)
    return keys


@dataclass(frozen=True, slots=True, eq=False)
class ThinBlock:
    """A block and which of its tokens stay."""

    block: Block
    kept: Array
    """(tokens,) bool; at least one of each unit."""

    @property
    def token_counts(self) -> Array:
        """(units,) int64, that stay."""
        counts: Array = np.add.reduceat(
            self.kept.astype(np.int64), self.block.table.token_starts[:-1]
        )
        return counts

    def _rows(self) -> Array:
        """The unit table's rows as they are then."""
        rows = self.block.table.rows.copy()
        counts = self.token_counts
        rows["thinned_count"] += rows["token_count"] - counts.astype(np.uint32)
        share = counts / rows["token_count"]
        changed = share < 1
        rows["drop_fraction"][changed] = (1 - (1 - rows["drop_fraction"]) * share)[changed]
        rows["token_count"] = counts
        return rows

    def header(self, *, previous_hash: int) -> BlockHeader:
        """The header but for its hashes of the table and of the mean keys."""
        header, layout = self.block.header, self.block.place.layout
        thinned_count = int(np.count_nonzero(self._rows()["thinned_count"]))
        token_count = int(np.count_nonzero(self.kept))
        shape = layout.geometry
        return replace(
            header,
            generation=header.generation + 1,
            previous_hash=previous_hash,
            token_count=token_count,
            table_bytes=table_bytes(header.unit_count, token_count, shape.layer_count),
            resume_bytes=thinned_count * row_bytes(shape),
        )

    @property
    def span_bytes(self) -> int:
        """Bytes that it takes on disk."""
        return self.header(previous_hash=0).span_bytes(self.block.place.layout)

    def pages(self, fd: int, *, previous_hash: int) -> list[Buffer]:
        """The whole block, header first, from the file that holds the old one.

        Raises:
            DamagedSegmentError, TornBlockError: the old one is not as it was written.
            OSError: the disk failed.
        """
        table, header = self.block.table, self.block.header
        rows = self._rows()
        layout = self.block.place.layout
        before = read_mean_keys(fd, self.block)
        thinned = np.flatnonzero(rows["thinned_count"]).tolist()
        shape = layout.geometry
        means = np.empty(
            (len(thinned), shape.layer_count, shape.kv_head_count * shape.head_dim), "<f4"
        )
        checksums = table.checksums.copy()
        slices: list[Buffer] = []
        pad = page_align(layout.extent_bytes(int(self.kept.sum()), header.unit_count))
        for layer in range(shape.layer_count):
            extents = read_extents(fd, self.block, layer)
            for place, position in enumerate(thinned):
                if position in before:
                    means[place, layer] = before[position][layer]
                else:
                    count = int(table.rows["token_count"][position])
                    keys = stored_keys(layout, extents[position], count)
                    means[place, layer] = mean_key(shape, keys)
            length = 0
            for position, part in enumerate(self._parts(extents)):
                checksums[position, layer] = xxhash.xxh3_64_intdigest(part.data)
                slices.append(part.data)
                length += part.nbytes
            slices.append(bytes(pad - length))
        packed = b"".join([rows.tobytes(), checksums.tobytes(), table.cells[self.kept].tobytes()])
        sealed = replace(
            self.header(previous_hash=previous_hash),
            table_hash=xxhash.xxh3_64_intdigest(packed),
            resume_hash=xxhash.xxh3_64_intdigest(means.tobytes()),
        )
        meta: list[Buffer] = [packed, self._thumbnails(fd), means.tobytes()]
        length = sum(len(part) for part in meta)
        return [sealed.pack(), *meta, bytes(page_align(length) - length), *slices]

    def _parts(self, extents: list[Array]) -> Iterator[Array]:
        starts = self.block.table.token_starts
        for position, extent in enumerate(extents):
            kept = self.kept[int(starts[position]) : int(starts[position + 1])]
            yield extent if kept.all() else select_tokens(self.block.place.layout, extent, kept)

    def _thumbnails(self, fd: int) -> bytes:
        header, table = self.block.header, self.block.table
        start = self.block.place.offset + PAGE_BYTES + header.table_bytes
        data = os.pread(fd, header.thumbnail_bytes, start)
        for position, row in enumerate(table.rows):
            bounds = table.thumbnail_starts[position : position + 2].tolist()
            if xxhash.xxh3_64_intdigest(data[slice(*bounds)]) != int(row["thumbnail_hash"]):
                raise DamagedSegmentError(f"the thumbnail of unit {row['index']}")
        return data
