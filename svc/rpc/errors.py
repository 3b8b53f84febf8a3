"""The one table of errors that clients see: reason, gRPC code, and how they travel.

A servicer raises `RequestError`; everything else that escapes is logged and becomes INTERNAL with
no details. Reasons, once published, stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "lookback"
_RETRY_AFTER_S = 1.0

# Errors travel in HTTP headers of a few kilobytes, percent-encoded and in base64: beyond that the
# call fails with no reason at all.
_MESSAGE_BYTES = 800
_VALUE_BYTES = 200

_Code = grpc.StatusCode


class Reason(Enum):
    """Why a request was refused; the value is the gRPC code it travels under."""

    def __new__(cls, code: grpc.StatusCode) -> Reason:
        """Makes members distinct although several share a code."""
        member = object.__new__(cls)
        member._value_ = (len(cls.__members__), code)
        return member

    INVALID_REQUEST = _Code.INVALID_ARGUMENT
    INVALID_SESSION_ID = _Code.INVALID_ARGUMENT
    OPEN_EXPECTED = _Code.INVALID_ARGUMENT
    MEDIA_MISMATCH = _Code.INVALID_ARGUMENT
    MEDIA_CORRUPT = _Code.INVALID_ARGUMENT
    MEDIA_UNSUPPORTED = _Code.INVALID_ARGUMENT
    MEDIA_TOO_LARGE = _Code.INVALID_ARGUMENT
    NO_VIDEO_STREAM = _Code.INVALID_ARGUMENT
    PTS_INVALID = _Code.INVALID_ARGUMENT
    QUESTION_INVALID = _Code.INVALID_ARGUMENT
    ASKED_AT_BEFORE_START = _Code.OUT_OF_RANGE
    ASKED_AT_NOT_RECEIVED = _Code.OUT_OF_RANGE
    SPAN_DROPPED = _Code.OUT_OF_RANGE
    SESSION_NOT_FOUND = _Code.NOT_FOUND
    SESSION_EXISTS = _Code.ALREADY_EXISTS
    SESSION_EMPTY = _Code.FAILED_PRECONDITION
    SESSION_FINISHED = _Code.FAILED_PRECONDITION
    SESSION_BUSY = _Code.FAILED_PRECONDITION
    IDENTITY_MISMATCH = _Code.FAILED_PRECONDITION
    SOURCE_MISMATCH = _Code.FAILED_PRECONDITION
    SESSION_ELSEWHERE = _Code.FAILED_PRECONDITION
    SESSION_IN_USE = _Code.ABORTED
    LEASE_LOST = _Code.ABORTED
    SNAPSHOT_LOST = _Code.ABORTED
    CREDIT_EXCEEDED = _Code.RESOURCE_EXHAUSTED
    TOO_MANY_CALLS = _Code.RESOURCE_EXHAUSTED
    TOO_MANY_SPANS = _Code.RESOURCE_EXHAUSTED
    STORE_FULL = _Code.RESOURCE_EXHAUSTED
    STORE_DAMAGED = _Code.DATA_LOSS
    QUESTION_TIMED_OUT = _Code.DEADLINE_EXCEEDED
    REGISTRY_UNAVAILABLE = _Code.UNAVAILABLE
    NOT_READY = _Code.UNAVAILABLE
    DRAINING = _Code.UNAVAILABLE
    INTERNAL = _Code.INTERNAL

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        code: grpc.StatusCode = self._value_[1]
        return code


_RETRYABLE = {
    Reason.TOO_MANY_CALLS,
    Reason.STORE_FULL,
    Reason.SESSION_IN_USE,
    Reason.LEASE_LOST,
    Reason.SNAPSHOT_LOST,
    Reason.REGISTRY_UNAVAILABLE,
    Reason.NOT_READY,
    Reason.DRAINING,
}


class RequestError(Exception):
    """A request that is refused for a reason the client can act on."""

    def __init__(self, reason: Reason, message: str, **metadata: object) -> None:
        """`metadata` holds the values that the message names; what is long is cut."""
        super().__init__(_cut(message, _MESSAGE_BYTES))
        self.reason = reason
        self.retryable = reason in _RETRYABLE
        """Whether the client is told that waiting may help; to be unset where it does not."""
        self.metadata: Mapping[str, str] = {
            key: _cut(str(value), _VALUE_BYTES) for key, value in metadata.items()
        }

    def to_status(self) -> grpc.Status:
        """Returns the rich status: ErrorInfo, and RetryInfo where a retry may help."""
        info = error_details_pb2.ErrorInfo(
            reason=self.reason.name, domain=DOMAIN, metadata=self.metadata
        )
        details = [_packed(info)]
        if self.retryable:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(int(_RETRY_AFTER_S * 1000))
            details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        code: int = self.reason.code.value[0]
        status = status_pb2.Status(code=code, message=str(self), details=details)
        rich: grpc.Status = rpc_status.to_status(status)
        return rich


def _cut(text: str, limit_bytes: int) -> str:
    """The text, or its beginning and end where it takes more than `limit_bytes` in UTF-8."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    half = limit_bytes // 2
    start = encoded[:half].decode(errors="ignore")
    end = encoded[-half:].decode(errors="ignore")
    return f"{start} ... {end} ({len(text)} characters)"


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
