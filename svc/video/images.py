"""Server side: still images to frames."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from svc.video.counters import DecoderCounters
from svc.video.errors import (
    CorruptMediaError,
    EmptyMediaError,
    MediaFormError,
    ResolutionLimitError,
    SizeLimitError,
    TruncatedMediaError,
    UnsupportedMediaError,
)
from svc.video.frames import Frame, ImageItem, ImageMedia, Item, Rgb
from svc.video.image_header import read_image_header
from svc.video.limits import VideoLimits
from svc.video.pictures import check_pixels
from svc.video.pts import checked_pts

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error)
"""What Pillow's readers raise on damaged bytes."""
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L")


class ImageDecoder:
    """Decodes still images, each a frame."""

    def __init__(self, media: ImageMedia, limits: VideoLimits) -> None:
        """Take the form of the images.

        Raises:
            ResolutionLimitError: raw images are announced that are too large.
        """
        check_pixels(media.raw_width, media.raw_height, limits.max_pixels)
        self.counters = DecoderCounters()
        self._media = media
        self._limits = limits

    def push(self, item: Item) -> Iterator[Frame]:
        """Decode one image.

        Raises:
            MediaFormError: it is not an image.
            EmptyMediaError, SizeLimitError, PtsError: what it carries is not acceptable.
            UnsupportedMediaError: it is none of JPEG, PNG, WebP.
            ResolutionLimitError: it has too many pixels; none was decoded.
            TruncatedMediaError, CorruptMediaError: its bytes stop too early or are damaged.
        """
        if not isinstance(item, ImageItem):
            raise MediaFormError(expected="ImageItem", given=type(item).__name__)
        checked_pts(item.pts_s)
        self._check_size(item)
        self.counters.items += 1
        if self._media.raw_width:
            rgb = self._raw(item)
        else:
            rgb = decode_image(item.data, max_pixels=self._limits.max_pixels, pts_s=item.pts_s)
        self.counters.frames += 1
        return iter((Frame.from_rgb(item.pts_s, rgb),))

    def finish(self) -> Iterator[Frame]:
        """Return nothing: an image is a frame at once."""
        return iter(())

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _check_size(self, item: ImageItem) -> None:
        if not item.data:
            raise EmptyMediaError(what=f"image at pts {item.pts_s!r} s")
        if len(item.data) > self._limits.max_image_bytes:
            raise SizeLimitError(
                what=f"image at pts {item.pts_s!r} s",
                given_bytes=len(item.data),
                allowed_bytes=self._limits.max_image_bytes,
            )

    def _raw(self, item: ImageItem) -> Rgb:
        shape = (self._media.raw_height, self._media.raw_width, 3)
        expected_bytes = shape[0] * shape[1] * shape[2]
        if len(item.data) != expected_bytes:
            raise CorruptMediaError(
                what=f"raw RGB image of {shape[1]} x {shape[0]}",
                reason=f"given {len(item.data)} bytes, it has {expected_bytes}",
                pts_s=item.pts_s,
            )
        return np.frombuffer(item.data, np.uint8).reshape(shape).copy()  # writable, for torch


def decode_image(data: bytes, *, max_pixels: int, pts_s: float | None = None) -> Rgb:
    """Return the pixels of a JPEG, PNG or WebP; of an animation the first picture.

    Palettes, grey and CMYK become RGB; of 16-bit grey the upper 8 bits count; transparent pixels
    are laid over black. Orientation notes (EXIF) are not followed.

    Returns:
        (height, width, 3) uint8.

    Raises:
        UnsupportedMediaError, ResolutionLimitError, TruncatedMediaError, CorruptMediaError
    """
    header = read_image_header(data)
    if header is None:
        raise UnsupportedMediaError(
            what="image",
            given=f"bytes starting with {data[:8].hex(' ')}",
            allowed="JPEG, PNG, WebP",
        )
    if not header.width or not header.height:
        raise TruncatedMediaError(
            what=f"{header.format} image", reason="its header tells no size", pts_s=pts_s
        )
    check_pixels(header.width, header.height, max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            # again: the header that Pillow found may be another one
            check_pixels(*image.size, max_pixels)
            image.load()
            return _to_rgb(image)
    except Image.DecompressionBombError as error:  # of a second header; ours was of the first
        raise ResolutionLimitError(width=None, height=None, max_pixels=max_pixels) from error
    except _DAMAGED as error:
        kind = TruncatedMediaError if "truncated" in str(error) else CorruptMediaError
        raise kind(what=f"{header.format} image", reason=str(error), pts_s=pts_s) from error


def _to_rgb(image: Image.Image) -> Rgb:
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        over_black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        over_black.alpha_composite(image.convert("RGBA"))
        image = over_black
    return np.array(image.convert("RGB"), dtype=np.uint8)
