"""The kind and size of an encoded image, read from its header alone.

Pillow tells sizes too, but for WebP only after it has set up a decoder with buffers for the whole
picture, and it refuses large ones on its own terms. Formats: PNG specification 11.2.1 (IHDR),
ITU-T T.81 B.2.2 (SOF), RFC 9649 (WebP).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What an image says of itself."""

    format: Literal["JPEG", "PNG", "WEBP"]
    width: int
    height: int


def read_image_header(data: bytes) -> ImageHeader | None:
    """Return kind and size of a JPEG, PNG or WebP.

    Returns:
        None if it is none of the three. Width and height are 0 where the header is cut off or
        damaged.
    """
    if data.startswith(_PNG):
        width, height = _png_size(data)
        return ImageHeader(format="PNG", width=width, height=height)
    if data.startswith(_JPEG):
        width, height = _jpeg_size(data)
        return ImageHeader(format="JPEG", width=width, height=height)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        width, height = _webp_size(data)
        return ImageHeader(format="WEBP", width=width, height=height)
    return None


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < 24 or data[12:16] != b"IHDR":
        return 0, 0
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return 0, 0
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            position += 2
        elif marker in _JPEG_SOF:
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            return width, height
        else:
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            position += 2 + max(length, 2)
    return 0, 0


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if len(data) < 30:
        return 0, 0
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        return width, 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        return width, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0
