"""Packets of an opened container through the decoder: what server and client share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from svc.video.codec_run import CodecRun
from svc.video.counters import DecoderCounters
from svc.video.errors import CorruptMediaError, TruncatedMediaError
from svc.video.frames import Frame
from svc.video.limits import VideoLimits
from svc.video.pictures import check_pixels
from svc.video.streams import codec_name

DemuxedPacket: TypeAlias = "av.Packet[VideoStream]"


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[DemuxedPacket]:
    """Yield the stream's packets in decoding order.

    Raises:
        CorruptMediaError: the container cannot be read on.
    """
    packets: Iterator[Any] = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except IndexError:
            # At the end PyAV looks for every stream FFmpeg has by now, also those that appeared
            # on the way (an FLV or MPEG-TS gaining one), which it does not know.
            return
        except av.error.FFmpegError as error:
            raise CorruptMediaError(
                what=f"{container.format.name} container", reason=error_text(error)
            ) from error
        if packet is None:
            return
        if packet.size:  # the last one is empty: a mark of the end
            yield packet


def packet_pts_s(packet: DemuxedPacket) -> float | None:
    """Return the packet's presentation time in seconds; None if it carries none."""
    return None if packet.pts is None else float(packet.pts * packet.time_base)


def cut_off(packet: DemuxedPacket, codec: str) -> CorruptMediaError:
    """Return the error for a packet that the demuxer marked as damaged."""
    return TruncatedMediaError(
        what=f"{codec} packet",
        reason="cut off or damaged in the container",
        pts_s=packet_pts_s(packet),
    )


def frames_of(
    container: InputContainer,
    stream: VideoStream,
    *,
    limits: VideoLimits,
    counters: DecoderCounters,
) -> Iterator[Frame]:
    """Yield the stream's frames in order of presentation, from where the container stands.

    Raises:
        ResolutionLimitError: the container tells a size that is too large, or a picture has it.
        VideoError: as `packets_of` and `CodecRun`.
    """
    codec = codec_name(stream)
    check_pixels(stream.width, stream.height, limits.max_pixels)
    run = CodecRun(stream.codec_context, codec=codec, limits=limits, counters=counters)
    for packet in packets_of(container, stream):
        if packet.is_corrupt:
            run.leave_out(cut_off(packet, codec))
            continue
        yield from run.decode(packet, pts_s=packet_pts_s(packet), key_frame=packet.is_keyframe)
    yield from run.flush()


def error_text(error: av.error.FFmpegError) -> str:
    """Return what FFmpeg says about an error."""
    return error.strerror or type(error).__name__
