"""Which stream of a container is the video."""

from __future__ import annotations

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from svc.video.errors import NoVideoStreamError


def best_video_stream(container: InputContainer) -> VideoStream:
    """Return the video stream that is decoded.

    With several, it is the one FFmpeg calls best (`av_find_best_stream`): marked as default, then
    most data, then most frames known. Cover pictures are no video.

    Raises:
        NoVideoStreamError: there is none.
    """
    best = container.streams.best("video")
    candidates = [best, *container.streams.video]
    for stream in candidates:
        if isinstance(stream, VideoStream) and not stream.disposition & Disposition.attached_pic:
            return stream
    raise NoVideoStreamError(stream_types=tuple(stream.type for stream in container.streams))


def codec_name(stream: VideoStream) -> str:
    """Return the name of the stream's codec, whichever library decodes it ("av1", "h264")."""
    return str(stream.codec_context.codec.canonical_name)
