"""From the decoder's pictures to frames: size, damage, rotation, conversion to RGB."""

from __future__ import annotations

import errno
import threading

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from svc.video.errors import CorruptMediaError, ResolutionLimitError
from svc.video.frames import Frame, Rgb

_MAYBE_TOO_LARGE = (errno.EINVAL, errno.ENOMEM, errno.ERANGE)


class PictureReader:
    """Turns decoded pictures into frames whose pixels are converted when asked for."""

    def __init__(self, *, max_pixels: int, rotation_degrees: int = 0) -> None:
        """Make a reader.

        Args:
            max_pixels: a larger picture is refused.
            rotation_degrees: clockwise turn of pictures that carry none of their own.
        """
        self._max_pixels = max_pixels
        self._rotation_degrees = rotation_degrees
        # One converter for all pictures: a new one each time costs memory (libswscale contexts).
        self._reformatter = VideoReformatter()
        self._lock = threading.Lock()  # frames may be converted in another thread than decoded

    def frame(self, picture: VideoFrame, pts_s: float) -> Frame:
        """Return the frame of a picture.

        Raises:
            ResolutionLimitError: it has too many pixels.
            CorruptMediaError: the decoder had to invent a part of it.
        """
        check_pixels(picture.width, picture.height, self._max_pixels)
        if picture.is_corrupt:
            raise CorruptMediaError(
                what="picture", reason="a part of its data is missing or damaged", pts_s=pts_s
            )
        quarter_turns = (rotation_of(picture) or self._rotation_degrees) // 90
        turned = quarter_turns % 2 == 1
        return Frame(
            pts_s=pts_s,
            width=picture.height if turned else picture.width,
            height=picture.width if turned else picture.height,
            convert=lambda: self._rgb(picture, quarter_turns),
        )

    def _rgb(self, picture: VideoFrame, quarter_turns: int) -> Rgb:
        with self._lock:
            rgb = self._reformatter.reformat(picture, format="rgb24", threads=1).to_ndarray()
        # rot90 turns anticlockwise for a positive count
        return np.ascontiguousarray(np.rot90(rgb, -quarter_turns), dtype=np.uint8)


def rotation_of(picture: VideoFrame) -> int:
    """Return the clockwise turn in degrees (0, 90, 180, 270) that shows the picture upright.

    Turns by other angles are left alone: 0.
    """
    anticlockwise = int(picture.rotation)
    return -anticlockwise % 360 if anticlockwise % 90 == 0 else 0


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise ResolutionLimitError if a picture of this size is too large."""
    if width * height > max_pixels:
        raise ResolutionLimitError(width=width, height=height, max_pixels=max_pixels)


def decoding_error(
    error: av.error.FFmpegError,
    *,
    what: str,
    pts_s: float | None,
    size: tuple[int, int],
    max_pixels: int,
) -> CorruptMediaError | ResolutionLimitError:
    """Return what an error of the decoder means.

    Args:
        error: as raised by PyAV.
        what: what was being decoded.
        pts_s: its presentation time in seconds, where it has one.
        size: width and height as the decoder knew them at that moment; 0 if it did not.
        max_pixels: the limit that the decoder was given.
    """
    width, height = size
    if width * height > max_pixels:
        return ResolutionLimitError(width=width, height=height, max_pixels=max_pixels)
    reason = error.strerror or type(error).__name__
    if error.errno in _MAYBE_TOO_LARGE:
        # what some decoders say of a picture above max_pixels, without telling its size
        reason += f"; damaged, or a picture of more than {max_pixels} pixels"
    return CorruptMediaError(what=what, reason=reason, pts_s=pts_s)
