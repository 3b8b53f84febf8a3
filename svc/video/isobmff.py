"""Where an MP4 keeps its index: in front of its data, or behind it.

Box layout: ISO/IEC 14496-12, 4.2.
"""

from __future__ import annotations

from collections.abc import Callable

_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_MAX_PREFIX_BYTES = 1 << 20


def read_to_index(read: Callable[[int], bytes]) -> tuple[bytes, bool]:
    """Read until it is known whether the bytes can be demuxed as they come.

    Args:
        read: returns at least one byte and at most as many as asked for; b"" at the end.

    Returns:
        What was read, and whether it is an MP4 whose index comes after its data: such a file must
        be complete before it can be demuxed.
    """
    prefix = _read_exactly(read, 8)
    if prefix[4:8] not in _FIRST_BOXES:
        return prefix, False
    position = 0
    while True:
        prefix += _read_exactly(read, position + 16 - len(prefix))
        size, kind = int.from_bytes(prefix[position : position + 4], "big"), prefix[position + 4 :]
        if kind[:4] in (b"mdat", b""):
            return prefix, kind[:4] == b"mdat"
        if kind[:4] in (b"moov", b"moof") or len(prefix) < position + 16:
            return prefix, False
        if size == 1:
            size = int.from_bytes(prefix[position + 8 : position + 16], "big")
        if size < 8 or position + size > _MAX_PREFIX_BYTES:
            # a box of unknown or large size in front: only the whole file can tell
            return prefix, True
        position += size
        prefix += _read_exactly(read, position - len(prefix))


def _read_exactly(read: Callable[[int], bytes], byte_count: int) -> bytes:
    data = b""
    while len(data) < byte_count and (piece := read(byte_count - len(data))):
        data += piece
    return data
