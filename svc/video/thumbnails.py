"""Small pictures of units, for people."""

from __future__ import annotations

import io

from PIL import Image

from svc.video.frames import Rgb


def thumbnail_jpeg(rgb: Rgb, *, max_side: int = 96, quality: int = 60) -> bytes:
    """Return a JPEG whose longer side is at most `max_side` pixels; never enlarged.

    Args:
        rgb: (height, width, 3) uint8.
        max_side: pixels, >= 1.
        quality: JPEG quality, 1 to 95.
    """
    if max_side < 1 or not 1 <= quality <= 95:
        raise ValueError(f"max_side must be >= 1, quality in 1..95, got {max_side=} {quality=}")
    image = Image.fromarray(rgb)
    # reducing first by whole steps makes 4K frames cheap; the difference is not visible
    image.thumbnail((max_side, max_side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
