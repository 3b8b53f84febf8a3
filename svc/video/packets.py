"""Server side: codec packets to frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import av
from av.video.codeccontext import VideoCodecContext

from svc.video.codec_run import CodecRun
from svc.video.counters import DecoderCounters
from svc.video.errors import EmptyMediaError, MediaFormError, SizeLimitError, UnsupportedMediaError
from svc.video.frames import Codec, Frame, Item, PacketItem, PacketMedia
from svc.video.limits import VideoLimits
from svc.video.pts import checked_pts

_DECODERS: dict[Codec, str] = {"av1": "libdav1d"}
"""Where FFmpeg's own decoder of that name needs special hardware."""


class PacketDecoder:
    """Decodes packets that come in decoding order; frames leave in order of presentation.

    Frames carry exactly the pts of their packet. Key frames and damage: see `CodecRun`. A change
    of resolution is followed: each frame has its own size.
    """

    def __init__(self, media: PacketMedia, limits: VideoLimits) -> None:
        """Open the codec.

        Raises:
            SizeLimitError: the extradata is too large.
            CorruptMediaError: the extradata is not of this codec, or damaged.
        """
        if len(media.extradata) > limits.max_extradata_bytes:
            raise SizeLimitError(
                what="extradata",
                given_bytes=len(media.extradata),
                allowed_bytes=limits.max_extradata_bytes,
            )
        context = _create_context(media.codec)
        if media.extradata:
            context.extradata = media.extradata
        self.counters = DecoderCounters()
        self._limits = limits
        self._run = CodecRun(
            context,
            codec=media.codec,
            limits=limits,
            counters=self.counters,
            rotation_degrees=media.rotation_degrees,
        )

    def push(self, item: Item) -> Iterator[Frame]:
        """Decode one packet; returns the frames that became ready.

        Raises:
            MediaFormError: it is not a packet.
            EmptyMediaError, SizeLimitError, PtsError: what the packet carries is not acceptable.
            NoKeyFrameError: too many packets, and none to start from.
            CorruptMediaError: it cannot be decoded: damaged, or of another codec.
            ResolutionLimitError: its picture is too large.
        """
        if not isinstance(item, PacketItem):
            raise MediaFormError(expected="PacketItem", given=type(item).__name__)
        checked_pts(item.pts_s)
        if not item.data:
            raise EmptyMediaError(what=f"packet at pts {item.pts_s!r} s")
        if len(item.data) > self._limits.max_packet_bytes:
            raise SizeLimitError(
                what=f"packet at pts {item.pts_s!r} s",
                given_bytes=len(item.data),
                allowed_bytes=self._limits.max_packet_bytes,
            )
        self.counters.items += 1
        packet = av.Packet(item.data)
        packet.is_keyframe = item.key_frame
        return self._counted(
            self._run.decode(
                packet, pts_s=item.pts_s, key_frame=item.key_frame, discard=item.discard
            )
        )

    def finish(self) -> Iterator[Frame]:
        """Return the frames that the decoder still held.

        Raises:
            NoKeyFrameError: packets came, and none to start from.
            CorruptMediaError: packets came, and no picture was in them.
        """
        return self._counted(self._run.flush())

    def close(self) -> None:
        """Do nothing: the codec is freed with the decoder."""

    def _counted(self, frames: list[Frame]) -> Iterator[Frame]:
        self.counters.frames += len(frames)
        return iter(frames)


def _create_context(codec: Codec) -> VideoCodecContext:
    decoder = _DECODERS.get(codec, codec)
    try:
        context = av.CodecContext.create(decoder, "r")
    except av.codec.codec.UnknownCodecError as error:
        raise UnsupportedMediaError(
            what="codec of packets",
            given=codec,
            allowed=f"a build of PyAV with {decoder}, which this one lacks",
        ) from error
    return cast(VideoCodecContext, context)
