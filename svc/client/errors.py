"""What a call can fail with, in one class: a stable reason, and what a caller needs to decide."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

UNREACHABLE = "UNREACHABLE"
"""Nobody answers at the address."""
CONNECTION_LOST = "CONNECTION_LOST"
"""The call ended before it should, and the server did not say why."""
TIMED_OUT = "TIMED_OUT"
"""The deadline of the call passed."""
GAVE_UP = "GAVE_UP"
"""A push could not be resumed within its limit."""
REPLAY_OVERRUN = "REPLAY_OVERRUN"
"""A source that cannot be read again would have to be, further back than is held."""
ITEM_TOO_LARGE = "ITEM_TOO_LARGE"
"""An image, packet or chunk does not fit in a message."""
FINISH_UNKNOWN = "FINISH_UNKNOWN"
"""A push lost the answer to its `finish`, and the session, finished since, may lack its end."""
PROTOCOL_VIOLATED = "PROTOCOL_VIOLATED"
"""The server sent what this version of the protocol does not know."""

# A call that the peer ends while a write is under way is given this status by the asyncio binding
# (grpcio 1.85), and what the peer said is lost. It says it again to a call
# that listens more closely.
_STATUS_LOST = "Internal error from Core"
_ENDED_SIGNS = ("RST_STREAM", _STATUS_LOST)
_UNREACHABLE_SIGNS = (
    "failed to connect",
    "Connection refused",
    "DNS resolution",
    "timeout",
    "errors resolving",
)


class LookbackError(Exception):
    """A call that failed.

    Attributes:
        reason: stable name, as the server gave it (`SESSION_NOT_FOUND`), or one of this module's
            for what no server can report, or the name of the gRPC code where neither is known.
        message: one sentence for people.
        metadata: the values the message names; with `UNREACHABLE` the `address`.
        code: the gRPC code; None where no call was made.
        retry_after_s: when a retry may help, as the server said; None: it did not.
    """

    def __init__(
        self,
        *,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        code: grpc.StatusCode | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.code = code
        self.retry_after_s = retry_after_s


def error_from_call(error: grpc.aio.AioRpcError, address: str) -> LookbackError:
    """Returns what the server at `address` said, or what its silence means."""
    code, message = error.code(), error.details() or ""
    rich = _rich_error(error)
    if rich is not None:
        return rich
    if code is grpc.StatusCode.UNAVAILABLE:
        if any(sign in message for sign in _UNREACHABLE_SIGNS):
            return unreachable(address)
        return _local(CONNECTION_LOST, f"the connection to {address} was lost", address, code)
    if code is grpc.StatusCode.CANCELLED or (
        code is grpc.StatusCode.INTERNAL and any(sign in message for sign in _ENDED_SIGNS)
    ):
        return _local(CONNECTION_LOST, f"the server at {address} ended the call", address, code)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _local(TIMED_OUT, f"no answer from {address} within the deadline", address, code)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return _local(code.name, f"the server at {address} does not offer this", address, code)
    return _local(code.name, message or "the server gave no details", address, code)


def unreachable(address: str) -> LookbackError:
    """Returns the error that stands for nobody answering at `address`."""
    return _local(
        UNREACHABLE, f"no server answers at {address}", address, grpc.StatusCode.UNAVAILABLE
    )


def _local(reason: str, message: str, address: str, code: grpc.StatusCode) -> LookbackError:
    return LookbackError(reason=reason, message=message, metadata={"address": address}, code=code)


def _rich_error(error: grpc.aio.AioRpcError) -> LookbackError | None:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the details contradict the code: a proxy changed one of them
        return None
    if status is None:
        return None
    info: error_details_pb2.ErrorInfo | None = None
    retry_after_s: float | None = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    if info is None:
        return None
    return LookbackError(
        reason=info.reason,
        message=status.message,
        metadata=dict(info.metadata),
        code=error.code(),
        retry_after_s=retry_after_s,
    )
