"""What can go wrong between bytes and frames: one class per decision the caller can make."""

from __future__ import annotations


class VideoError(Exception):
    """Base of every error that svc.video raises on purpose."""


class UnsupportedMediaError(VideoError):
    """The form, format or shape of the media is not one that is decoded."""

    def __init__(self, *, what: str, given: str, allowed: str) -> None:
        super().__init__(f"{what}: given {given}, allowed: {allowed}")
        self.what = what
        self.given = given
        self.allowed = allowed


class MediaFormError(VideoError):
    """An item is not of the form that was announced when the decoder was opened."""

    def __init__(self, *, expected: str, given: str) -> None:
        super().__init__(f"expected items of type {expected}, given {given}")
        self.expected = expected
        self.given = given


class NoVideoStreamError(VideoError):
    """The container holds no video (audio, subtitles or a cover picture at most)."""

    def __init__(self, *, stream_types: tuple[str, ...]) -> None:
        found = ", ".join(stream_types) or "no stream at all"
        super().__init__(f"no video stream: the container holds {found}; one video is needed")
        self.stream_types = stream_types


class EmptyMediaError(VideoError):
    """The media ended, and there was nothing in it to decode."""

    def __init__(self, *, what: str) -> None:
        super().__init__(f"empty: {what}")
        self.what = what


class CorruptMediaError(VideoError):
    """Bytes are damaged, or are not of the codec or format they were said to be.

    Attributes:
        pts_s: presentation time of the damaged item in seconds; None where there is none.
    """

    def __init__(self, *, what: str, reason: str, pts_s: float | None = None) -> None:
        where = "" if pts_s is None else f" at pts {pts_s!r} s"
        super().__init__(f"{what}{where}: {reason}")
        self.what = what
        self.reason = reason
        self.pts_s = pts_s


class TruncatedMediaError(CorruptMediaError):
    """The bytes stop before they should."""


class NoKeyFrameError(VideoError):
    """No packet that decoding can start from has come."""

    def __init__(self, *, packet_count: int, allowed: int) -> None:
        super().__init__(
            f"{packet_count} packets came and none is a key frame; decoding starts at a key frame,"
            f" at most {allowed} packets are passed over while waiting for one"
        )
        self.packet_count = packet_count
        self.allowed = allowed


class ResolutionLimitError(VideoError):
    """A picture is larger than allowed; its pixels were not decoded.

    Attributes:
        width, height: in pixels; None where the decoder refused before it told the size.
    """

    def __init__(self, *, width: int | None, height: int | None, max_pixels: int) -> None:
        given = "a larger picture" if width is None else f"{width} x {height} pixels"
        super().__init__(f"given {given}, allowed: at most {max_pixels} pixels in a picture")
        self.width = width
        self.height = height
        self.max_pixels = max_pixels


class SizeLimitError(VideoError):
    """A piece of data is larger than allowed."""

    def __init__(self, *, what: str, given_bytes: int, allowed_bytes: int) -> None:
        super().__init__(f"{what}: given {given_bytes} bytes, allowed: at most {allowed_bytes}")
        self.what = what
        self.given_bytes = given_bytes
        self.allowed_bytes = allowed_bytes


class NotStreamableError(VideoError):
    """An MP4 whose index comes after the pictures is too large to be held back until it comes."""

    def __init__(self, *, given_bytes: int, allowed_bytes: int) -> None:
        super().__init__(
            "mp4 with its index ('moov') behind its data cannot be decoded as it arrives;"
            f" given at least {given_bytes} bytes, allowed to be held back: {allowed_bytes}."
            " Send its packets instead, or write it fragmented or with the index in front"
            " (ffmpeg: -movflags frag_keyframe+empty_moov, or +faststart)"
        )
        self.given_bytes = given_bytes
        self.allowed_bytes = allowed_bytes


class SpoolFullError(VideoError):
    """There is no room to hold an MP4 back until its index comes."""

    def __init__(self, *, folder: str, free_bytes: int, reserve_bytes: int) -> None:
        super().__init__(
            f"{folder} has no room for an mp4 with its index ('moov') behind its data:"
            f" {free_bytes} bytes are free of which {reserve_bytes} are reserved"
        )
        self.folder = folder
        self.free_bytes = free_bytes
        self.reserve_bytes = reserve_bytes


class PtsError(VideoError):
    """A presentation time is missing, not finite, out of range, or jumps back too far."""

    def __init__(self, *, pts_s: float | None, reason: str) -> None:
        super().__init__(f"presentation time {pts_s!r} s: {reason}")
        self.pts_s = pts_s
        self.reason = reason


class SamplerStateError(VideoError):
    """A stored sampler state cannot be read, or belongs to another sampling."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"sampler state: {reason}")
        self.reason = reason


class DecoderStalledError(VideoError):
    """The decoder made no progress in time."""

    def __init__(self, *, stall_timeout_s: float) -> None:
        super().__init__(f"no progress in {stall_timeout_s} s of decoding")
        self.stall_timeout_s = stall_timeout_s


class SourceOpenError(VideoError):
    """A source cannot be opened or read."""

    def __init__(self, *, path: str, reason: str) -> None:
        super().__init__(f"cannot read {path!r}: {reason}")
        self.path = path
        self.reason = reason


class SourceNotSeekableError(VideoError):
    """A source cannot start at a later time."""

    def __init__(self, *, path: str, from_pts_s: float) -> None:
        super().__init__(
            f"{path!r} cannot start at {from_pts_s!r} s: it is read as it comes, from its start"
        )
        self.path = path
        self.from_pts_s = from_pts_s


class BackendMissingError(VideoError):
    """An optional decoding library is not installed."""

    def __init__(self, *, backend: str, extra: str) -> None:
        super().__init__(f"{backend} is not installed: pip install 'lookback[{extra}]'")
        self.backend = backend
        self.extra = extra
