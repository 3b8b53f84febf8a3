"""Client side: the decoded frames of a file, from any time on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from svc.video.counters import DecoderCounters
from svc.video.demux import DemuxedPacket, error_text, frames_of, packets_of
from svc.video.errors import SourceOpenError
from svc.video.frames import Frame
from svc.video.limits import VideoLimits
from svc.video.pts import checked_pts
from svc.video.streams import best_video_stream

Backend = Literal["pyav", "decord"]


@contextmanager
def opened_file(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its best video stream; closes it at the end.

    Raises:
        SourceOpenError: it is not there, or nothing that FFmpeg knows.
        NoVideoStreamError: it holds no video.
    """
    try:
        container: InputContainer = av.open(path, "r", metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        reason = error_text(error) if isinstance(error, av.error.FFmpegError) else str(error)
        raise SourceOpenError(path=path, reason=reason) from error
    with container:
        yield container, best_video_stream(container)


@contextmanager
def opened_at(path: str, from_pts_s: float | None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file so that its first key frame to come is at or before a time.

    It is the last such key frame where the container has an index, an earlier one else. Without
    a time, or before the first key frame, the file is read from its start.

    Raises:
        SourceOpenError, NoVideoStreamError, PtsError
    """
    seek_s = None if from_pts_s is None else _seek_target(path, checked_pts(from_pts_s))
    with opened_file(path) as (container, stream):
        if seek_s is not None:
            _seek(container, stream, seek_s)
        yield container, stream


def read_frames(
    path: str, *, from_pts_s: float | None = None, backend: Backend = "pyav"
) -> Iterator[Frame]:
    """Yield a file's frames in order of presentation; close the iterator to close the file.

    Args:
        path: of a video file.
        from_pts_s: leave out the frames before this time, in seconds.
        backend: the library that decodes; "decord" is an optional extra.

    Raises:
        BackendMissingError: the library is not installed.
        VideoError: the file cannot be read or decoded.
    """
    if backend == "decord":
        from svc.video.decord_frames import read_decord_frames  # optional: loaded when asked for

        yield from read_decord_frames(path, opened_file(path), from_pts_s=from_pts_s)
        return
    with opened_at(path, from_pts_s) as (container, stream):
        limits, counters = VideoLimits(), DecoderCounters()
        for frame in frames_of(container, stream, limits=limits, counters=counters):
            if from_pts_s is None or frame.pts_s >= from_pts_s:
                yield frame


def _seek_target(path: str, from_pts_s: float) -> float | None:
    """Return a time to seek to so that a key frame at or before `from_pts_s` follows.

    Containers seek by decoding time, or by guess, and may land behind the wanted time: then the
    target moves back, further each time. None: read from the start.
    """
    with opened_file(path) as (container, stream):
        start_s = 0.0
        if stream.start_time is not None and stream.time_base is not None:
            start_s = float(stream.start_time * stream.time_base)
        target_s, step_s = from_pts_s, 1.0
        while target_s > start_s:
            try:
                _seek(container, stream, target_s)
            except av.error.FFmpegError:
                return None  # it has no index and cannot guess
            key_s = _first_key_time_s(packets_of(container, stream))
            if key_s is not None and key_s <= from_pts_s:
                return target_s
            target_s -= step_s
            step_s *= 2
    return None


def _first_key_time_s(packets: Iterator[DemuxedPacket]) -> float | None:
    for packet in packets:
        ticks = packet.dts if packet.pts is None else packet.pts
        if packet.is_keyframe and ticks is not None:
            return float(ticks * packet.time_base)
    return None


def _seek(container: InputContainer, stream: VideoStream, pts_s: float) -> None:
    if stream.time_base is None:
        raise SourceOpenError(path=container.name, reason="its video stream has no time base")
    container.seek(math.floor(pts_s / stream.time_base), stream=stream, backward=True)
