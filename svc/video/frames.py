"""The data of svc.video: frames, the forms media come in, and the items that are pushed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from svc.video.errors import UnsupportedMediaError

Rgb: TypeAlias = NDArray[np.uint8]
"""(height, width, 3) uint8, C-contiguous."""

Codec = Literal["h264", "hevc", "vp9", "av1"]
CODECS: tuple[Codec, ...] = ("h264", "hevc", "vp9", "av1")
"""Codecs whose packets are accepted."""
ROTATIONS = (0, 90, 180, 270)


class Frame:
    """One decoded frame and the time it is shown.

    The pixels are converted to RGB when they are first asked for: most frames of a stream are
    never sampled, and converting costs as much as decoding. Until then the frame holds the
    decoder's own picture.
    """

    __slots__ = ("_convert", "_rgb", "height", "pts_s", "width")

    def __init__(
        self, *, pts_s: float, width: int, height: int, convert: Callable[[], Rgb]
    ) -> None:
        """Make a frame of `width` x `height` pixels as shown (after rotation)."""
        self.pts_s = pts_s
        self.width = width
        self.height = height
        self._convert = convert
        self._rgb: Rgb | None = None

    @classmethod
    def from_rgb(cls, pts_s: float, rgb: Rgb) -> Frame:
        """Make a frame of pixels that are there already.

        Args:
            pts_s: presentation time in seconds.
            rgb: (height, width, 3) uint8.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"rgb must be (height, width, 3) uint8, got {rgb.shape} {rgb.dtype}")
        return cls(
            pts_s=pts_s,
            width=rgb.shape[1],
            height=rgb.shape[0],
            convert=lambda: np.ascontiguousarray(rgb),
        )

    @property
    def rgb(self) -> Rgb:
        """(height, width, 3) uint8, C-contiguous; the same array each time."""
        if self._rgb is None:
            rgb = self._convert()
            self._rgb = rgb
            self._convert = lambda: rgb  # lets go of the decoder's picture
        return self._rgb

    def __repr__(self) -> str:
        return f"Frame(pts_s={self.pts_s!r}, {self.width}x{self.height})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMedia:
    """Every frame is an image of its own: JPEG, PNG or WebP by content, or raw RGB."""

    raw_width: int = 0
    """Width of raw RGB images in pixels; 0: the images are encoded."""
    raw_height: int = 0

    def __post_init__(self) -> None:
        given = (self.raw_width, self.raw_height)
        if min(given) < 0 or (0 in given and given != (0, 0)):
            raise UnsupportedMediaError(
                what="size of raw RGB images",
                given=f"{self.raw_width} x {self.raw_height}",
                allowed="both 0 (encoded images) or both positive",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketMedia:
    """Frames come as packets of a codec, in decoding order."""

    codec: Codec
    extradata: bytes = b""
    """The codec's out-of-band configuration (avcC, hvcC, ...); empty where it has none."""
    rotation_degrees: int = 0
    """How far the decoded picture is turned clockwise to be shown (phones): 0, 90, 180, 270."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise UnsupportedMediaError(
                what="codec of packets", given=repr(self.codec), allowed=", ".join(CODECS)
            )
        if self.rotation_degrees not in ROTATIONS:
            raise UnsupportedMediaError(
                what="rotation in degrees",
                given=str(self.rotation_degrees),
                allowed=", ".join(map(str, ROTATIONS)),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerMedia:
    """The bytes of a container come as they arrive."""

    format: str = ""
    """Name of the format if it is known ("mp4", "matroska", ...); empty: found out."""


Media: TypeAlias = ImageMedia | PacketMedia | ContainerMedia


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageItem:
    """One still image."""

    pts_s: float
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketItem:
    """One codec packet."""

    pts_s: float
    data: bytes
    key_frame: bool
    """Whether decoding can start here."""
    discard: bool = False
    """Decode it, for others build on it, but do not show it (edit lists of MP4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkItem:
    """The next bytes of a container."""

    data: bytes


Item: TypeAlias = ImageItem | PacketItem | ChunkItem
