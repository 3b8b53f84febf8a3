"""Clips as real H.264 files, and back to frames."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from eval.streamworld.render import FRAME_PX, render, to_uint8
from eval.streamworld.world import Clip


def write_mp4(
    clip: Clip,
    path: Path,
    *,
    fps: Fraction = Fraction(1),
    crf: int = 23,
    key_frame_every: int = 30,
    hold: int = 1,
) -> None:
    """Write a clip as H.264 in mp4; frame k of the file has pts k/fps exactly.

    Args:
        clip: The clip.
        path: File to write; replaced when it exists.
        fps: Frames a second.
        crf: x264's quality, 0 (lossless) to 51.
        key_frame_every: Frames between key frames.
        hold: How many frames of the file show each frame of the clip.
    """
    # faststart: the index comes first, so that the file can be streamed
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = FRAME_PX
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / fps
        stream.gop_size = key_frame_every
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        for index, pixels in enumerate(_pixels(clip, hold)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _pixels(clip: Clip, hold: int) -> Iterator[NDArray[np.uint8]]:
    """Each frame's pixels in order, `hold` times; every unique image is drawn once."""
    drawn, pixels = -1, np.zeros((FRAME_PX, FRAME_PX, 3), np.uint8)
    for image in clip.image_of:
        if image != drawn:
            drawn, pixels = image, to_uint8(render([clip.images[image]]))[0]
        for _ in range(hold):
            yield pixels


def read_mp4(path: Path) -> tuple[NDArray[np.uint8], list[float]]:
    """All frames of a file as [n, height, width, 3] and their pts in seconds."""
    frames, pts_s = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            pts_s.append(frame.time)
    return np.stack(frames), pts_s
