"""How long a Matroska or WebM file says it is.

FFmpeg takes a file that is cut off for one that is over. Element layout: RFC 8794, section 4 to 6.
"""

from __future__ import annotations

_EBML_ID = b"\x1a\x45\xdf\xa3"
_SEGMENT_ID = b"\x18\x53\x80\x67"
HEAD_BYTES = 256
"""Bytes from the start that `said_size` needs at most, in files as they are written."""


def said_size(head: bytes) -> int | None:
    """Return the number of bytes up to the end of the first segment.

    Args:
        head: the first HEAD_BYTES of the file, or all if it is shorter.

    Returns:
        None if it is not Matroska, or was written as a stream, without a size.
    """
    if not head.startswith(_EBML_ID):
        return None
    header_size, position = _size_at(head, len(_EBML_ID))
    if header_size is None:
        return None
    position += header_size
    if head[position : position + 4] != _SEGMENT_ID:
        return None
    segment_size, position = _size_at(head, position + 4)
    return None if segment_size is None else position + segment_size


def _size_at(head: bytes, position: int) -> tuple[int | None, int]:
    """Return the size written at a position (None: unknown) and where it ends."""
    first = head[position] if position < len(head) else 0
    length = 9 - first.bit_length()  # the leading one tells how many bytes it takes
    field = head[position : position + length]
    if length > 8 or len(field) < length:
        return None, position
    value_bits = 7 * length
    value = int.from_bytes(field, "big") & ((1 << value_bits) - 1)
    unknown = value == (1 << value_bits) - 1
    return (None if unknown else value), position + length
