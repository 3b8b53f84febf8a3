"""Which errors of the lower packages are refusals, and how clients see them."""

from __future__ import annotations

import errno

from svc.rpc.errors import Reason, RequestError
from svc.rpc.store_errors import translate_store_error
from svc.video import errors as video


def translate(error: Exception) -> RequestError | None:
    """Returns the refusal that an error stands for; None for a fault of ours."""
    if isinstance(error, video.VideoError):
        return _of_video(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RequestError(Reason.STORE_FULL, "the store's disk is full")
    return translate_store_error(error)


def _of_video(error: video.VideoError) -> RequestError | None:
    text = str(error)
    match error:
        case video.MediaFormError():
            return RequestError(
                Reason.MEDIA_MISMATCH, text, expected=error.expected, given=error.given
            )
        case video.UnsupportedMediaError():
            return RequestError(
                Reason.MEDIA_UNSUPPORTED, text, given=error.given, allowed=error.allowed
            )
        case video.NotStreamableError():
            return RequestError(
                Reason.MEDIA_UNSUPPORTED,
                text,
                given_bytes=error.given_bytes,
                allowed_bytes=error.allowed_bytes,
            )
        case video.NoVideoStreamError():
            return RequestError(
                Reason.NO_VIDEO_STREAM, text, stream_types=", ".join(error.stream_types)
            )
        case video.ResolutionLimitError():
            return RequestError(
                Reason.MEDIA_TOO_LARGE,
                text,
                width=error.width,
                height=error.height,
                max_pixels=error.max_pixels,
            )
        case video.SizeLimitError():
            return RequestError(
                Reason.MEDIA_TOO_LARGE,
                text,
                given_bytes=error.given_bytes,
                allowed_bytes=error.allowed_bytes,
            )
        case video.SpoolFullError():
            return RequestError(
                Reason.STORE_FULL,
                text,
                free_bytes=error.free_bytes,
                reserve_bytes=error.reserve_bytes,
            )
        case video.PtsError():
            return RequestError(Reason.PTS_INVALID, text, pts_s=error.pts_s)
        case video.CorruptMediaError():
            return RequestError(Reason.MEDIA_CORRUPT, text, pts_s=error.pts_s)
        case video.EmptyMediaError() | video.NoKeyFrameError() | video.DecoderStalledError():
            return RequestError(Reason.MEDIA_CORRUPT, text)
        case video.SamplerStateError():
            return RequestError(Reason.STORE_DAMAGED, text)
    return None
