"""Client side: a file or standard input as the items that are pushed.

Start at `open_source`. What is sent depends on what is there:

- H.264, HEVC, VP9, AV1 in a file: its packets, untouched; they can start at any key frame;
- any other codec in a file (an AVI with MPEG-4, say): every frame as a JPEG, decoded here;
- standard input, or a pipe: the container's bytes as they come, demuxed by the server.
"""

from __future__ import annotations

import io
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Protocol

import av
from PIL import Image

from svc.video.demux import cut_off, error_text, packet_pts_s, packets_of
from svc.video.errors import CorruptMediaError, PtsError, SourceNotSeekableError, SourceOpenError
from svc.video.file_frames import Backend, opened_at, opened_file, read_frames
from svc.video.frames import (
    CODECS,
    ChunkItem,
    ContainerMedia,
    Frame,
    ImageItem,
    ImageMedia,
    Item,
    Media,
    PacketItem,
    PacketMedia,
)
from svc.video.pictures import rotation_of
from svc.video.streams import codec_name

CHUNK_BYTES = 256 * 1024
JPEG_QUALITY = 95
_PROBED_PACKETS = 64

STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDescription:
    """What is known of a source before it is read."""

    codec: str
    """Name of the codec, or "" where the server will find out."""
    width: int = 0
    """Pixels as shown; 0 where the server will find out."""
    height: int = 0
    start_pts_s: float | None = None
    duration_s: float | None = None
    """None where the container does not say."""
    transcoded: bool = False
    """Whether frames are decoded here and sent as JPEG: slightly lossy."""


class Source(Protocol):
    """Something that can be pushed."""

    @property
    def media(self) -> Media:
        """The form in which the items come."""
        ...

    @property
    def description(self) -> SourceDescription:
        """What is known before reading."""
        ...

    def items(self, from_pts_s: float | None = None) -> Iterator[Item]:
        """Yield what to push, in that order. Close the iterator to close files early.

        Args:
            from_pts_s: to resume: starts at the key frame at or before this time (seconds).

        Raises:
            SourceNotSeekableError: it cannot start later than at its start.
            VideoError: it cannot be read on.
        """
        ...


def open_source(
    path: str, *, decode_with: Backend | None = None, stdin: IO[bytes] | None = None
) -> Source:
    """Return the source at a path.

    Args:
        path: of a file or a pipe; "-" is standard input.
        decode_with: decode here with this library and send images, even if packets could be sent.
        stdin: what to read for "-"; default: the process's own.

    Raises:
        SourceOpenError: it cannot be opened.
        NoVideoStreamError: the file holds no video.
        CorruptMediaError: nothing in it can be decoded.
    """
    if path == STDIN:
        return StreamSource(path, stdin or sys.stdin.buffer)
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise SourceOpenError(path=path, reason=error.strerror or str(error)) from error
    if stat.S_ISDIR(mode):
        raise SourceOpenError(path=path, reason="it is a folder; give one video file")
    if not stat.S_ISREG(mode):
        return StreamSource(path, None)
    probe = _probe(path)
    if decode_with is not None or probe.media is None:
        return ImageSource(path, probe.description, decode_with or "pyav")
    return PacketSource(path, probe.description, probe.media)


class PacketSource:
    """The packets of a file, untouched, in decoding order."""

    def __init__(self, path: str, description: SourceDescription, media: PacketMedia) -> None:
        """Take what `open_source` found out."""
        self.media = media
        self.description = description
        self._path = path

    def items(self, from_pts_s: float | None = None) -> Iterator[Item]:
        """Yield packets; see `Source`. A packet that is cut off is an error, not sent."""
        with opened_at(self._path, from_pts_s) as (container, stream):
            for packet in packets_of(container, stream):
                if packet.is_corrupt:
                    raise cut_off(packet, self.media.codec)
                pts_s = packet_pts_s(packet)
                if pts_s is None:
                    raise PtsError(pts_s=None, reason=f"a packet of {self._path!r} carries none")
                yield PacketItem(
                    pts_s=pts_s,
                    data=bytes(packet),
                    key_frame=packet.is_keyframe,
                    discard=packet.is_discard,
                )


class ImageSource:
    """The frames of a file, decoded here, each as a JPEG without colour subsampling."""

    def __init__(self, path: str, description: SourceDescription, backend: Backend) -> None:
        """Take what `open_source` found out, and the library to decode with."""
        self.media = ImageMedia()
        self.description = SourceDescription(
            codec=description.codec,
            width=description.width,
            height=description.height,
            start_pts_s=description.start_pts_s,
            duration_s=description.duration_s,
            transcoded=True,
        )
        self._path = path
        self._backend: Backend = backend

    def items(self, from_pts_s: float | None = None) -> Iterator[Item]:
        """Yield images from the very time on: each is a key frame; see `Source`."""
        frames = read_frames(self._path, from_pts_s=from_pts_s, backend=self._backend)
        for frame in frames:
            yield ImageItem(pts_s=frame.pts_s, data=_jpeg(frame))


class StreamSource:
    """The bytes of a container as they come; read once."""

    def __init__(self, path: str, file: IO[bytes] | None) -> None:
        """Take an open binary file, or None to open the path when read."""
        self.media = ContainerMedia()
        self.description = SourceDescription(codec="")
        self._path = path
        self._file = file

    def items(self, from_pts_s: float | None = None) -> Iterator[Item]:
        """Yield chunks as soon as bytes are there; see `Source`."""
        if from_pts_s is not None:
            raise SourceNotSeekableError(path=self._path, from_pts_s=from_pts_s)
        try:
            if self._file is not None:
                yield from _chunks(self._file)
                return
            with open(self._path, "rb") as file:
                yield from _chunks(file)
        except OSError as error:
            raise SourceOpenError(path=self._path, reason=str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    description: SourceDescription
    media: PacketMedia | None
    """None: not to be sent as packets."""


def _probe(path: str) -> _Probe:
    """Decode the first frame: it alone tells the size and turn as shown."""
    with opened_file(path) as (container, stream):
        codec = codec_name(stream)
        start_s = duration_s = None
        if stream.time_base is not None:
            if stream.start_time is not None:
                start_s = float(stream.start_time * stream.time_base)
            if stream.duration is not None:
                duration_s = float(stream.duration * stream.time_base)
        extradata = stream.codec_context.extradata or b""
        packets = list(islice(packets_of(container, stream), _PROBED_PACKETS))
        all_timed = all(packet.pts is not None for packet in packets)
        if duration_s is None and container.duration is not None:
            duration_s = container.duration / av.time_base
    with opened_file(path) as (container, stream):
        try:
            first = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise CorruptMediaError(
                what=f"first frame of {path!r}", reason=error_text(error)
            ) from error
    if first is None:
        raise CorruptMediaError(what=repr(path), reason="no frame in it")
    turn = rotation_of(first)
    width, height = (first.width, first.height)[:: -1 if turn % 180 else 1]
    description = SourceDescription(
        codec=codec, width=width, height=height, start_pts_s=start_s, duration_s=duration_s
    )
    media = None
    for name in CODECS:
        if name == codec and all_timed:
            media = PacketMedia(codec=name, extradata=extradata, rotation_degrees=turn)
    return _Probe(description=description, media=media)


def _chunks(file: IO[bytes]) -> Iterator[Item]:
    # read1 gives what is there; read would wait for a whole chunk of a live stream
    read = file.read1 if isinstance(file, io.BufferedReader) else file.read
    while data := read(CHUNK_BYTES):
        yield ChunkItem(data=data)


def _jpeg(frame: Frame) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame.rgb).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
