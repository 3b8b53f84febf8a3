"""Packets of one codec through one decoder: the part that packets and containers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from svc.video.counters import DecoderCounters
from svc.video.errors import CorruptMediaError, NoKeyFrameError, PtsError
from svc.video.frames import Frame
from svc.video.limits import VideoLimits
from svc.video.pictures import PictureReader, decoding_error
from svc.video.pts import checked_pts

_REMEMBERED_PACKETS = 512
"""Packets whose picture may still come; decoders hold back 16 at most."""


@dataclass(frozen=True, slots=True)
class _Pending:
    pts_s: float | None
    discard: bool


class CodecRun:
    """Decodes packets in decoding order; frames leave in order of presentation.

    Packets before the first key frame are passed over and counted. A damaged packet is an error,
    or, up to `limits.max_corrupt_packets`, counted and left out with what follows it up to the
    next key frame. Damage that the codec itself cannot notice goes through.
    """

    def __init__(
        self,
        context: VideoCodecContext,
        *,
        codec: str,
        limits: VideoLimits,
        counters: DecoderCounters,
        rotation_degrees: int = 0,
    ) -> None:
        """Take a decoder; it must not have been used yet.

        Raises:
            CorruptMediaError: its extradata is not of this codec, or damaged.
        """
        self._context = context
        self._codec = codec
        self._limits = limits
        self._counters = counters
        self._reader = PictureReader(
            max_pixels=limits.max_pixels, rotation_degrees=rotation_degrees
        )
        self._pending: dict[int, _Pending] = {}
        self._packet_number = 0
        self._passed_over_in_a_row = 0
        self._waiting_for_key_frame = True
        self._picture_seen = False
        self._open()

    def decode(
        self, packet: av.Packet[Any], *, pts_s: float | None, key_frame: bool, discard: bool = False
    ) -> list[Frame]:
        """Return the frames that became ready.

        Args:
            packet: its pts is overwritten.
            pts_s: presentation time in seconds; None: the decoder's own idea is taken.
            key_frame: whether decoding can start here.
            discard: whether its picture is not to be shown.

        Raises:
            PtsError, NoKeyFrameError, CorruptMediaError, ResolutionLimitError
        """
        if pts_s is not None:
            checked_pts(pts_s)
        if self._waiting_for_key_frame and not key_frame:
            self._pass_over()
            return []
        self._waiting_for_key_frame = False
        self._passed_over_in_a_row = 0
        self._packet_number += 1
        self._pending[self._packet_number] = _Pending(pts_s, discard)
        self._pending.pop(self._packet_number - _REMEMBERED_PACKETS, None)
        # The decoder hands the number back with the picture: no time base, so no rounding of pts.
        packet.pts = self._packet_number
        return self._frames(packet, pts_s)

    def flush(self) -> list[Frame]:
        """Return the frames that the decoder still held; the end.

        Raises:
            NoKeyFrameError: packets came, and none to start from.
            CorruptMediaError: packets came, and no picture was in them; or as `decode`.
        """
        if not self._packet_number:
            if self._counters.packets_before_key_frame:
                self._refuse_without_key_frame(self._counters.packets_before_key_frame)
            return []
        frames = self._frames(None, None)
        if not self._picture_seen and not self._counters.corrupt_packets:
            raise CorruptMediaError(
                what=f"{self._packet_number} {self._codec} packets", reason="no picture in them"
            )
        return frames

    def leave_out(self, error: CorruptMediaError) -> None:
        """Count a damaged packet and go on at the next key frame; one too many is raised."""
        self._counters.corrupt_packets += 1
        if self._counters.corrupt_packets > self._limits.max_corrupt_packets:
            raise error
        self._context.flush_buffers()
        self._waiting_for_key_frame = True

    def _open(self) -> None:
        self._context.options = {"max_pixels": str(self._limits.max_pixels)}
        # One thread: many sessions share the machine, and frame threads would hold frames back.
        self._context.thread_count = 1
        try:
            self._context.open(strict=False)
        except av.error.FFmpegError as error:
            raise self._meaning(error, what=f"{self._codec} extradata", pts_s=None) from error

    def _pass_over(self) -> None:
        self._counters.packets_before_key_frame += 1
        self._passed_over_in_a_row += 1
        if self._passed_over_in_a_row > self._limits.max_packets_before_key_frame:
            self._refuse_without_key_frame(self._passed_over_in_a_row)

    def _refuse_without_key_frame(self, packet_count: int) -> None:
        raise NoKeyFrameError(
            packet_count=packet_count, allowed=self._limits.max_packets_before_key_frame
        )

    def _frames(self, packet: av.Packet[Any] | None, pts_s: float | None) -> list[Frame]:
        frames: list[Frame] = []
        try:
            for picture in self._pictures(packet, pts_s):
                self._picture_seen = True
                pending = self._pending_of(picture)
                if not pending.discard:
                    frames.append(self._reader.frame(picture, self._pts_of(picture, pending)))
        except CorruptMediaError as error:
            self.leave_out(error)
        return frames

    def _pictures(self, packet: av.Packet[Any] | None, pts_s: float | None) -> list[VideoFrame]:
        try:
            return self._context.decode(packet)
        except av.error.FFmpegError as error:
            hint = "" if self._picture_seen else " (none decoded before it: another codec?)"
            raise self._meaning(error, what=f"{self._codec} packet{hint}", pts_s=pts_s) from error

    def _meaning(self, error: av.error.FFmpegError, *, what: str, pts_s: float | None) -> Exception:
        return decoding_error(
            error,
            what=what,
            pts_s=pts_s,
            size=(self._context.width, self._context.height),
            max_pixels=self._limits.max_pixels,
        )

    def _pending_of(self, picture: VideoFrame) -> _Pending:
        pending = None if picture.pts is None else self._pending.get(picture.pts)
        if pending is None:
            raise PtsError(pts_s=None, reason=f"a {self._codec} picture belongs to no packet")
        return pending

    def _pts_of(self, picture: VideoFrame, pending: _Pending) -> float:
        if pending.pts_s is not None:
            return pending.pts_s
        # AVI tells decoding times only; the decoder gives pictures in order, so they serve
        if picture.dts is None or picture.time_base is None:
            raise PtsError(pts_s=None, reason=f"a {self._codec} packet carries no time")
        return checked_pts(float(picture.dts * picture.time_base))
