"""Decoding files with decord, an optional extra: less work per frame than PyAV, fewer codecs.

For files only: it is no longer maintained, and knows no AV1. Its times are single precision and
counted from the first frame, so times are read from the container with PyAV.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from svc.video.demux import packet_pts_s, packets_of
from svc.video.errors import BackendMissingError, SourceOpenError
from svc.video.frames import Frame, Rgb
from svc.video.pts import checked_pts

OpenedFile = AbstractContextManager[tuple[InputContainer, VideoStream]]


def read_decord_frames(
    path: str, opened: OpenedFile, *, from_pts_s: float | None = None
) -> Iterator[Frame]:
    """Yield a file's frames in order of presentation.

    Args:
        path: of a video file.
        opened: the same file, opened with PyAV, for the times.
        from_pts_s: leave out the frames before this time, in seconds.

    Raises:
        BackendMissingError: decord is not installed.
        SourceOpenError: decord cannot read the file, or sees other frames in it than PyAV.
    """
    try:
        import decord
    except ImportError as error:
        raise BackendMissingError(backend="decord", extra="decord") from error
    with opened as (container, stream):
        shown = (packet for packet in packets_of(container, stream) if not packet.is_discard)
        times_s = sorted(s for packet in shown if (s := packet_pts_s(packet)) is not None)
        number = stream.index
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceOpenError(path=path, reason=f"decord: {reason}") from error
    if len(reader) != len(times_s):
        raise SourceOpenError(
            path=path,
            reason=f"decord sees {len(reader)} frames, stream {number} has {len(times_s)}",
        )
    for index, pts_s in enumerate(times_s):
        if from_pts_s is None or pts_s >= from_pts_s:
            rgb: Rgb = np.ascontiguousarray(reader[index].asnumpy())
            yield Frame.from_rgb(checked_pts(pts_s), rgb)
