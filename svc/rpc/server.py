"""Life of a gRPC server process: not serving, loading, serving, draining, gone."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from svc.rpc.interceptor import ErrorInterceptor, Translate
from svc.rpc.ports import PortInUseError

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 8 * 2**20
"""Largest message either server takes; the framework answers RESOURCE_EXHAUSTED beyond it."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a port in use must be an error, not a second listener
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    # A client whose machine is gone says nothing: its calls end after half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this a client can be megabytes ahead of what the server has read.
    ("grpc.http2.bdp_probe", 0),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class RpcServer:
    """A gRPC server whose health follows the process: NOT_SERVING until `set_serving`."""

    def __init__(
        self, *, address: Address, service_names: Sequence[str], translate: Translate
    ) -> None:
        """Makes the server; nothing listens yet."""
        self._wanted = address
        self._names = ["", *service_names]
        self.grpc = grpc.aio.server(interceptors=[ErrorInterceptor(translate)], options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection(
            [*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME], self.grpc
        )

    async def start(self) -> Address:
        """Listens, with health NOT_SERVING; returns the address with the port that was taken.

        Raises:
            PortInUseError: the address cannot be listened on.
        """
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            port = self.grpc.add_insecure_port(str(self._wanted))
        except RuntimeError as error:
            raise PortInUseError(
                f"cannot listen on {self._wanted}: the port is in use or not allowed"
            ) from error
        await self.grpc.start()
        return Address(host=self._wanted.host, port=port)

    async def set_serving(self) -> None:
        """Reports SERVING: models are loaded and calls are welcome."""
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def set_leaving(self) -> None:
        """Reports NOT_SERVING for good; calls are still taken, for the handlers to refuse."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Reports NOT_SERVING for good, then ends open calls after `grace_s` at the latest."""
        await self.set_leaving()
        await self.grpc.stop(grace_s)


def stop_event_on_signals() -> asyncio.Event:
    """Returns an event that SIGTERM and SIGINT set."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def announce(name: str) -> Callable[[], None]:
        def handler() -> None:
            logger.info("stop requested", extra={"signal": name})
            stopping.set()

        return handler

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, announce(number.name))
    return stopping
