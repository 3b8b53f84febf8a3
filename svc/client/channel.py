"""Channels: the options that must agree with the server's, and waiting until one serves."""

from __future__ import annotations

import asyncio
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from svc.client.errors import TIMED_OUT, LookbackError, unreachable

_MAX_MESSAGE_BYTES = 8 * 2**20
_POLL_S = 0.1
_NOBODY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

_OPTIONS = [
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # A peer that is gone without a word is noticed within 40 s of silence. The server allows
    # pings from 20 s on; more often it would hang up.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # The transport's own back-off grows to two minutes; a server that is back must be found soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt may take, in fact: a server that is busy greets late.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """Returns a channel to `address` ("host:port"); it connects when it is first used."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


async def wait_ready(address: str, timeout_s: float) -> None:
    """Waits until the server at `address` says that it serves.

    Raises:
        LookbackError: it did not within `timeout_s`: UNREACHABLE where nobody answered, TIMED_OUT
            where somebody did.
    """
    deadline = time.monotonic() + timeout_s
    answered = False
    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=left_s)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _NOBODY:
                    answered = True
            else:
                answered = True
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(max(0.0, min(_POLL_S, deadline - time.monotonic())))
    if not answered:
        raise unreachable(address)
    raise LookbackError(
        reason=TIMED_OUT,
        message=f"the server at {address} is there but did not serve within {timeout_s:g} s",
        metadata={"address": address, "timeout_s": str(timeout_s)},
    )
