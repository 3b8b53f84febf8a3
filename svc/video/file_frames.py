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
from svc.video.demux import error_text, frames_of, packet_pts_s, packets_of
from svc.video.errors import SourceOpenError
from svc.video.frames import Frame
from svc.video.limits import VideoLimits
from svc.video.pts import checked_pts
from svc.video.streams import FILE_DEMUXERS, best_video_stream

Backend = Literal["pyav", "decord"]

_SEEK_ATTEMPTS = 32
_SEEK_BY_KEY_FRAMES = 8

_NO_VIDEO = (av.error.InvalidDataError, av.error.ArgumentError, av.error.EOFError)
"""What FFmpeg says of a file in none of the formats that are let in."""


@contextmanager
def opened_file(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its best video stream; closes it at the end.

    Raises:
        SourceOpenError: it is not there, or nothing that FFmpeg knows.
        NoVideoStreamError: it holds no video.
    """
    try:
        container: InputContainer = av.open(
            path, "r", options={"format_whitelist": FILE_DEMUXERS}, metadata_errors="replace"
        )
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, _NO_VIDEO):
            reason = "it is no video that can be read"
        else:
            reason = error_text(error) if isinstance(error, av.error.FFmpegError) else str(error)
        raise SourceOpenError(path=path, reason=reason) from error
    with container:
        yield container, best_video_stream(container)


@contextmanager
def opened_at(path: str, from_pts_s: float | None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file so that its first key frame to come is at or before a time.

    It is the last such key frame or one a little earlier, as well as the container can seek.
    Without a time, or before the first key frame, the file is read from its start.

    Raises:
        SourceOpenError, NoVideoStreamError, PtsError
    """
    target = None if from_pts_s is None else _seek_target(path, checked_pts(from_pts_s))
    with opened_file(path) as (container, stream):
        if target is not None:
            container.seek(target, stream=stream, backward=True)
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


def _seek_target(path: str, from_pts_s: float) -> int | None:
    """Return a time to seek to, in ticks, so that a key frame at or before `from_pts_s` follows.

    Containers seek by decoding time, or by guess, and may land behind the wanted time: then the
    target moves back, by key frames first, further each time later. None: read from the start.
    """
    with opened_file(path) as (container, stream):
        if stream.time_base is None:
            return None
        start = -math.inf if stream.start_time is None else stream.start_time
        target = math.floor(from_pts_s / stream.time_base)
        for attempt in range(_SEEK_ATTEMPTS):
            if target <= start:
                break
            try:
                container.seek(target, stream=stream, backward=True)
            except av.error.FFmpegError:
                break  # it has no index and cannot guess
            key = next((p for p in packets_of(container, stream) if p.is_keyframe), None)
            pts_s = None if key is None else packet_pts_s(key)
            if pts_s is not None and pts_s <= from_pts_s:
                return target
            if key is not None and key.dts is not None:
                target = min(target, key.dts - 1)
            if attempt >= _SEEK_BY_KEY_FRAMES:
                target -= math.ceil(2 ** (attempt - _SEEK_BY_KEY_FRAMES) / stream.time_base)
    return None
