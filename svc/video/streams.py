"""Which stream of a container is the video."""

from __future__ import annotations

from av.codec.context import CodecContext
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from svc.video.errors import NoVideoStreamError

STREAMABLE_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi,flv,mpeg,"
    "mp3,aac,wav,flac,ogg"  # let in to be refused for what they are: no video
)
"""What may be recognised in bytes that arrive. Playlists, for one, would open other files."""
FILE_DEMUXERS = STREAMABLE_DEMUXERS + (
    ",asf,rm,mxf,mxf_opatom,nut,ivf,yuv4mpegpipe,gif,dv,gxf,swf,wtv,bink,smk,nsv"
)
"""What may be recognised in files: FFmpeg would make a video of a text file, too.

Bare codec streams (.h264) are not among them: they carry no times, FFmpeg would make some up.
"""


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
    context: CodecContext | None = stream.codec_context  # PyAV's types do not tell of the None
    return "unknown" if context is None else str(context.codec.canonical_name)
