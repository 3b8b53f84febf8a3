"""Server side: the bytes of a container, as they arrive, to frames."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol

import av
from av.container import InputContainer

from svc.video.counters import DecoderCounters
from svc.video.demux import error_text, frames_of
from svc.video.errors import (
    CorruptMediaError,
    EmptyMediaError,
    MediaFormError,
    NotStreamableError,
    SizeLimitError,
    TruncatedMediaError,
    UnsupportedMediaError,
)
from svc.video.exchange import CancelledError, Exchange
from svc.video.frames import ChunkItem, ContainerMedia, Frame, Item
from svc.video.isobmff import read_to_index
from svc.video.limits import MIB, VideoLimits
from svc.video.matroska import HEAD_BYTES, said_size
from svc.video.spool import Spool
from svc.video.streams import STREAMABLE_DEMUXERS, best_video_stream, codec_name

FORMATS = {
    "mp4": "mp4",
    "mov": "mov",
    "matroska": "matroska",
    "mkv": "matroska",
    "webm": "webm",
    "mpegts": "mpegts",
    "ts": "mpegts",
    "avi": "avi",
    "flv": "flv",
    "mpeg": "mpeg",
}
"""Formats a client may name, and FFmpeg's names of them."""
CODECS_IN_CONTAINERS = (
    "h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v3",
    "mjpeg", "h263", "flv1", "theora",
)  # fmt: skip
_ANALYSE_US = 2_000_000


class Readable(Protocol):
    """What PyAV reads from."""

    def read(self, byte_count: int, /) -> bytes:
        """Return 1 to `byte_count` bytes; b"" at the end."""
        ...


class ContainerDecoder:
    """Demuxes and decodes bytes in a thread of its own as they arrive.

    Which stream: see `best_video_stream`. An MP4 with its index behind its data is held on disk,
    up to `limits.spool_limit_bytes`, and decoded at `finish`. Every error is final; frames decoded
    before it are given out first.
    """

    def __init__(
        self, media: ContainerMedia, limits: VideoLimits, spool: Spool | None = None
    ) -> None:
        """Start the thread.

        Raises:
            UnsupportedMediaError: no such format is read.
        """
        if media.format and media.format not in FORMATS:
            raise UnsupportedMediaError(
                what="container format", given=repr(media.format), allowed=", ".join(FORMATS)
            )
        self.counters = DecoderCounters()
        self._format = FORMATS.get(media.format)
        self._limits = limits
        self._spool = spool or Spool()
        self._exchange = Exchange(
            byte_limit=limits.max_chunk_bytes,
            frame_limit=limits.frame_queue_count,
            stall_timeout_s=limits.stall_timeout_s,
        )
        self._thread = threading.Thread(target=self._work, name="container-decoder", daemon=True)
        self._thread.start()

    def push(self, item: Item) -> Iterator[Frame]:
        """Take the next bytes at once; the iterator yields every frame they complete.

        Exhaust it before the next push: it is what bounds memory.

        Raises:
            MediaFormError: it is not a chunk.
            EmptyMediaError, SizeLimitError: it holds nothing, or too much.
            VideoError: from the iterator, whatever the bytes so far gave rise to.
        """
        if not isinstance(item, ChunkItem):
            raise MediaFormError(expected="ChunkItem", given=type(item).__name__)
        if not item.data:
            raise EmptyMediaError(what="chunk")
        if len(item.data) > self._limits.max_chunk_bytes:
            raise SizeLimitError(
                what="chunk",
                given_bytes=len(item.data),
                allowed_bytes=self._limits.max_chunk_bytes,
            )
        self.counters.items += 1
        self._exchange.offer(item.data)
        return self._counted(self._exchange.frames_until_taken())

    def finish(self) -> Iterator[Frame]:
        """Say that the bytes are over; the iterator yields all remaining frames.

        Raises:
            EmptyMediaError: not one byte came.
            VideoError: from the iterator, whatever the bytes gave rise to.
        """
        if not self.counters.items:
            raise EmptyMediaError(what="container without a byte")
        self._exchange.end()
        return self._counted(self._exchange.frames_until_finished())

    def close(self) -> None:
        """End the thread and let go of everything. May be called at any time, and again."""
        self._exchange.cancel()
        self._thread.join(self._limits.stall_timeout_s)

    def _counted(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self.counters.frames += 1
            yield frame
        self.counters.ignored_bytes = self._exchange.ignored_bytes

    # --- in the thread

    def _work(self) -> None:
        error: Exception | None = None
        try:
            with contextlib.ExitStack() as stack:
                self._demux(stack)
        except CancelledError:
            pass
        except Exception as caught:  # noqa: BLE001  handed to the owner, who raises it
            error = caught
        self._exchange.finished(error)

    def _demux(self, stack: contextlib.ExitStack) -> None:
        prefix, index_last = read_to_index(self._exchange.read)
        if index_last:
            spooled = self._spooled(prefix, stack)
            self._decode(stack.enter_context(self._open(spooled)))
            return
        arriving = _Arriving(prefix, self._exchange)
        self._decode(stack.enter_context(self._open(arriving)))
        arriving.check_complete()

    def _spooled(self, prefix: bytes, stack: contextlib.ExitStack) -> Readable:
        file = stack.enter_context(self._spool.open())
        size_bytes = len(prefix)
        self._spool.write(file, prefix)
        while data := self._exchange.read(MIB):
            size_bytes += len(data)
            if size_bytes > self._limits.spool_limit_bytes:
                raise NotStreamableError(
                    given_bytes=size_bytes, allowed_bytes=self._limits.spool_limit_bytes
                )
            self._spool.write(file, data)
        if not self._exchange.ended:
            raise CancelledError
        file.seek(0)
        return file

    def _open(self, file: Readable) -> InputContainer:
        options = {
            "format_whitelist": STREAMABLE_DEMUXERS,
            "protocol_whitelist": "none",
            "probesize": str(self._limits.probe_bytes),
            "analyzeduration": str(_ANALYSE_US),
            "max_pixels": str(self._limits.max_pixels),
        }
        try:
            container: InputContainer = av.open(
                file, "r", self._format, options, metadata_errors="replace"
            )
            return container
        except av.error.FFmpegError as error:
            kind = TruncatedMediaError if self._exchange.ended else CorruptMediaError
            raise kind(
                what=f"{self._format or 'container'} bytes",
                reason=f"{error_text(error)}; cut off, damaged, or none of {', '.join(FORMATS)}",
            ) from error

    def _decode(self, container: InputContainer) -> None:
        stream = best_video_stream(container)
        codec = codec_name(stream)
        if codec not in CODECS_IN_CONTAINERS:
            raise UnsupportedMediaError(
                what="codec in a container", given=codec, allowed=", ".join(CODECS_IN_CONTAINERS)
            )
        for frame in frames_of(container, stream, limits=self._limits, counters=self.counters):
            self._exchange.put(frame)


class _Arriving:
    """The bytes as they arrive, those already read in front: what PyAV reads from. Cannot seek."""

    def __init__(self, prefix: bytes, exchange: Exchange) -> None:
        self._prefix = prefix
        self._exchange = exchange
        self._head = b""
        self._byte_count = 0

    def read(self, byte_count: int, /) -> bytes:
        """Return 1 to `byte_count` bytes; b"" at the end."""
        if self._prefix:
            data, self._prefix = self._prefix[:byte_count], self._prefix[byte_count:]
        else:
            data = self._exchange.read(byte_count)
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
        self._byte_count += len(data)
        return data

    def check_complete(self) -> None:
        """Raise TruncatedMediaError if the file says it is longer than what came."""
        expected_bytes = said_size(self._head)
        if expected_bytes is None:
            return
        while self._byte_count < expected_bytes and self.read(MIB):
            pass  # the demuxer need not have read what follows the last packet
        if self._byte_count < expected_bytes:
            raise TruncatedMediaError(
                what="matroska bytes",
                reason=f"given {self._byte_count}, the file says it has {expected_bytes}",
            )
