"""Real videos, videos made here, and PyAV's own decoding of them to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from svc.video.decoder import Decoder, open_decoder
from svc.video.frames import ChunkItem, ContainerMedia, Frame, Item, Media, Rgb
from svc.video.limits import VideoLimits
from svc.video.sources import Source
from svc.video.streams import best_video_stream

VIDEOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "videos"

NASA = "nasa_13013.mp4"
HEVC = "h265_video.mp4"
AV1 = "av1_video.mkv"
VP9 = "testsrc2_vp9.webm"
AVI = "testsrc2_mpeg4.avi"
LATE_START = "test_non_zero_start.mp4"
VARIABLE = "generated_vfr_bframes.mp4"
AUDIO = "nasa_13013.mp4.audio.mp3"
PACKET_FILES = (NASA, HEVC, AV1, VP9, LATE_START, VARIABLE)
ALL_FILES = (*PACKET_FILES, AVI)

Timed = list[tuple[float, Rgb]]
Fingerprints = list[tuple[float, tuple[int, ...], bytes]]
"""Time, shape and hash of the pixels of each frame."""


def video(name: str) -> str:
    """Path of a real video; skips the test if it is not there."""
    path = VIDEOS / name
    if not path.exists():
        pytest.skip(f"real video is absent: {path}")
    return str(path)


@cache
def decoded_directly(path: str) -> Fingerprints:
    """What plain PyAV makes of the best video stream."""
    return fingerprints(frames_directly(path))


def frames_directly(path: str) -> Iterator[tuple[float, Rgb]]:
    with av.open(path) as container:
        for frame in container.decode(best_video_stream(container)):
            ticks = frame.dts if frame.pts is None else frame.pts
            assert ticks is not None
            assert frame.time_base is not None
            rgb = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            yield float(ticks * frame.time_base), rgb


def fingerprints(frames: Iterable[tuple[float, Rgb]]) -> Fingerprints:
    return [(pts, rgb.shape, hashlib.sha1(rgb.tobytes()).digest()) for pts, rgb in frames]


def timed(frames: Iterable[Frame]) -> Timed:
    return [(frame.pts_s, frame.rgb) for frame in frames]


def drained(decoder: Decoder, items: Iterable[Item]) -> Timed:
    """Everything a decoder makes of the items, to the end."""
    out: Timed = []
    try:
        for item in items:
            out += timed(decoder.push(item))
        out += timed(decoder.finish())
    finally:
        decoder.close()
    return out


def pushed(source: Source, from_pts_s: float | None = None) -> Timed:
    return drained(open_decoder(source.media), source.items(from_pts_s))


def chunks(data: bytes, size: int = 7000) -> list[Item]:
    return [ChunkItem(data=data[i : i + size]) for i in range(0, len(data), size)]


def container_frames(
    data: bytes, *, media: ContainerMedia | None = None, size: int = 7000, **limits: Any
) -> Timed:
    form: Media = media or ContainerMedia()
    return drained(open_decoder(form, VideoLimits(**limits)), chunks(data, size))


def assert_same(ours: Timed, theirs: Fingerprints) -> None:
    prints = fingerprints(ours)
    assert [pts for pts, _, _ in prints] == [pts for pts, _, _ in theirs]
    different = [mine[0] for mine, other in zip(prints, theirs, strict=True) if mine != other]
    assert not different, f"pixels differ at {different} s"


def picture(index: int, width: int = 64, height: int = 48) -> Rgb:
    """A picture that is different for every index, and has detail."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width + 256, 3), dtype=np.uint8)
    return np.ascontiguousarray(noise[:, index % 256 : index % 256 + width])


def encoded(
    path: Path,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    sizes: Iterable[tuple[int, int]] = ((64, 48),) * 20,
    rotation_degrees: int = 0,
    mux: dict[str, str] | None = None,
) -> Path:
    """Write a video of 10 fps with a picture of each size; the first decides the stream's."""
    frame_sizes = list(sizes)
    with av.open(str(path), "w", options=mux or {}) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height = frame_sizes[0]
        stream.pix_fmt = "yuv420p"
        stream.options = options or {}
        if rotation_degrees:
            stream.set_display_rotation(rotation_degrees)
        for index, (width, height) in enumerate(frame_sizes):
            frame = av.VideoFrame.from_ndarray(picture(index, width, height))
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def remuxed(source: str, path: Path, **mux: str) -> Path:
    """Copy the packets of the best video stream into another container."""
    with av.open(source) as old, av.open(str(path), "w", options=mux) as new:
        stream = best_video_stream(old)
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    return path
