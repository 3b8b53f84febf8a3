"""Bytes of the segment header page and of the block header page.

Start reading here: a segment is a header page and blocks; a block is a header page, a meta slice
(unit table, thumbnails, resume blob) and one slice per layer. Every part starts on a page.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kvstore.encoding import Layout, encoding_named
from kvstore.errors import FormatVersionError
from kvstore.geometry import Geometry

PAGE_BYTES = 4096
FORMAT_VERSION = 2

_SEGMENT_MAGIC = b"LBKVSEG\0"
BLOCK_MAGIC = b"LBKVBLK\0"
_SEGMENT = struct.Struct("<8sIIQQQQQQdIIII16s8s64s")
_BLOCK = struct.Struct("<8sIIQQQQQQQQQQQQQQd")
_VERSION = struct.Struct("<I")
_HASH = struct.Struct("<Q")


def page_align(byte_count: int) -> int:
    """The next multiple of the page size."""
    return -(-byte_count // PAGE_BYTES) * PAGE_BYTES


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode()


def _seal(content: bytes) -> bytes:
    page = content.ljust(PAGE_BYTES - _HASH.size, b"\0")
    return page + _HASH.pack(xxhash.xxh3_64_intdigest(page))


def _intact_hash(page: bytes | bytearray | memoryview, magic: bytes, path: Path) -> int | None:
    """The page's own hash, or None when it does not match or the page is of another kind."""
    view = memoryview(page)
    if view.nbytes != PAGE_BYTES or view[: len(magic)] != magic:
        return None
    (stored,) = _HASH.unpack_from(view, PAGE_BYTES - _HASH.size)
    if xxhash.xxh3_64_intdigest(view[: PAGE_BYTES - _HASH.size]) != stored:
        return None
    (version,) = _VERSION.unpack_from(view, len(magic))
    if version != FORMAT_VERSION:
        raise FormatVersionError(path, version, FORMAT_VERSION)
    return int(stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """First page of a segment file."""

    session_id: str
    session_hash: int
    epoch: int
    """In which it was begun; it keeps it when it is written anew."""
    layout: Layout
    first_block: int
    """Sequence number of its first block; all blocks before it were durable when it was made."""
    first_unit: int
    previous_hash: int
    """Header hash of the block before the first one, 0 at the start of the session."""
    created_unix_s: float
    generation: int = 0
    """Raised by one whenever the whole segment is written anew, thinner."""
    chain_end_hash: int = 0
    """Of a segment written anew: the header hash that the next segment's chain refers to, which is
    that of the last block as it was first written. 0: the last block's own."""

    def pack(self) -> bytes:
        """The page."""
        shape = self.layout.geometry
        return _seal(
            _SEGMENT.pack(
                _SEGMENT_MAGIC,
                FORMAT_VERSION,
                PAGE_BYTES,
                self.session_hash,
                self.epoch,
                self.first_block,
                self.first_unit,
                self.previous_hash,
                self.chain_end_hash,
                self.created_unix_s,
                shape.layer_count,
                shape.kv_head_count,
                shape.head_dim,
                self.generation,
                shape.element.encode(),
                self.layout.encoding.encode(),
                self.session_id.encode(),
            )
        )

    @classmethod
    def unpack(cls, page: bytes | bytearray | memoryview, path: Path) -> SegmentHeader | None:
        """The header, or None when the page is not an intact segment header.

        Raises:
            FormatVersionError: it is one of another version.
        """
        if _intact_hash(page, _SEGMENT_MAGIC, path) is None:
            return None
        fields = _SEGMENT.unpack_from(page)
        layer_count, kv_head_count, head_dim, generation, element, encoding, name = fields[10:]
        geometry = Geometry(
            layer_count=layer_count,
            kv_head_count=kv_head_count,
            head_dim=head_dim,
            element=_text(element),
        )
        return cls(
            session_hash=fields[3],
            epoch=fields[4],
            first_block=fields[5],
            first_unit=fields[6],
            previous_hash=fields[7],
            chain_end_hash=fields[8],
            created_unix_s=fields[9],
            layout=Layout(geometry, encoding_named(_text(encoding))),
            generation=generation,
            session_id=_text(name),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHeader:
    """First page of a block. Its hash covers, through `table_hash`, every byte of the block."""

    session_hash: int
    layout_fingerprint: int
    sequence: int
    epoch: int
    durable_block_count: int
    """Blocks that were durable when this one was written: all before them are proven."""
    previous_hash: int
    first_unit: int
    unit_count: int
    token_count: int
    table_bytes: int
    table_hash: int
    thumbnail_bytes: int
    resume_bytes: int
    """Of the resume blob; in a thinned block, of mean keys in its place: see `thinblock`."""
    resume_hash: int
    created_unix_s: float
    generation: int = 0
    """That of the segment it lies in."""
    hash: int = 0
    """The page's own hash; filled by `unpack`."""

    def pack(self) -> bytes:
        """The page."""
        return _seal(
            _BLOCK.pack(
                BLOCK_MAGIC,
                FORMAT_VERSION,
                self.generation,
                self.session_hash,
                self.layout_fingerprint,
                self.sequence,
                self.epoch,
                self.durable_block_count,
                self.previous_hash,
                self.first_unit,
                self.unit_count,
                self.token_count,
                self.table_bytes,
                self.table_hash,
                self.thumbnail_bytes,
                self.resume_bytes,
                self.resume_hash,
                self.created_unix_s,
            )
        )

    @classmethod
    def unpack(cls, page: bytes | bytearray | memoryview, path: Path) -> BlockHeader | None:
        """The header, or None when the page is not an intact block header.

        Raises:
            FormatVersionError: it is one of another version.
        """
        page_hash = _intact_hash(page, BLOCK_MAGIC, path)
        if page_hash is None:
            return None
        fields = _BLOCK.unpack_from(page)
        return cls(
            generation=fields[2],
            session_hash=fields[3],
            layout_fingerprint=fields[4],
            sequence=fields[5],
            epoch=fields[6],
            durable_block_count=fields[7],
            previous_hash=fields[8],
            first_unit=fields[9],
            unit_count=fields[10],
            token_count=fields[11],
            table_bytes=fields[12],
            table_hash=fields[13],
            thumbnail_bytes=fields[14],
            resume_bytes=fields[15],
            resume_hash=fields[16],
            created_unix_s=fields[17],
            hash=page_hash,
        )

    @property
    def meta_span_bytes(self) -> int:
        """Bytes of the meta slice, padding included."""
        return page_align(self.table_bytes + self.thumbnail_bytes + self.resume_bytes)

    def layer_offset(self, layout: Layout, layer: int) -> int:
        """Where a layer's slice starts, from the start of the block."""
        slice_span = page_align(layout.extent_bytes(self.token_count, self.unit_count))
        return PAGE_BYTES + self.meta_span_bytes + layer * slice_span

    def span_bytes(self, layout: Layout) -> int:
        """Bytes of the whole block, padding included."""
        return self.layer_offset(layout, layout.geometry.layer_count)
