"""IngestService: one call, from its first message to its last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from lookback.v1 import ingest_pb2, ingest_pb2_grpc
from svc.ingest.app import App
from svc.ingest.convert import event_message, opened_message, read_items, read_open
from svc.ingest.push import Push
from svc.logs import log_fields
from svc.rpc.errors import Reason, RequestError

SERVICE_NAME = ingest_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name
FIRST_MESSAGE_WAIT_S = 30.0
"""How long a call may be open without saying what it is for."""
QUIET_S = 0.1
LINGER_S = 1.0
"""A call that failed is ended when its client has been quiet for so long; at the latest then."""

_Context: TypeAlias = grpc.aio.ServicerContext[ingest_pb2.IngestRequest, ingest_pb2.IngestResponse]


class IngestService(ingest_pb2_grpc.IngestServiceServicer):
    """Video in. A stream that ends without `finish` is a lost connection, not the video's end."""

    def __init__(self, app: Callable[[], App]) -> None:
        """`app` gives what serves the calls, or refuses while it is being loaded."""
        self._app = app

    async def Ingest(  # noqa: N802 - named by the protocol
        self, request_iterator: AsyncIterator[ingest_pb2.IngestRequest], context: _Context
    ) -> AsyncIterator[ingest_pb2.IngestResponse]:
        """Streams one session's video."""
        app = self._app()
        requests = aiter(request_iterator)
        opening = read_open(await _first(requests))
        with log_fields(session=opening.session_id):
            push, session, joined = await app.open_push(opening)
            reader = _Reader(requests, push)
            try:
                held = await push.opened()
                reader.start()
                yield opened_message(
                    held,
                    credit_items=app.settings.credit_items,
                    target_fps=session.settings.sample_fps,
                    joined=joined,
                )
                async for event in push.events():
                    yield event_message(event)
            except Exception:
                await reader.quiet()
                raise
            finally:
                push.end()
                await reader.stop()


async def _first(requests: AsyncIterator[Any]) -> ingest_pb2.IngestRequest | None:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_WAIT_S):
            request: ingest_pb2.IngestRequest | None = await anext(requests, None)
            return request
    except TimeoutError as error:
        raise RequestError(
            Reason.OPEN_EXPECTED,
            f"no `open` came within {FIRST_MESSAGE_WAIT_S:.0f} s",
            wait_s=FIRST_MESSAGE_WAIT_S,
        ) from error


class _Reader:
    """Hands what the client sends to the push, until it ends one way or another."""

    def __init__(self, requests: AsyncIterator[ingest_pb2.IngestRequest], push: Push) -> None:
        self._requests = requests
        self._push = push
        self._heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to read."""
        self._task = asyncio.create_task(self._read())

    async def quiet(self) -> None:
        """Returns when the client has stopped to send, or goes on for too long.

        A client that writes while the call is ended under it loses the status, and with it the
        reason. One that keeps to its credit stops soon, for it gets no more.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while self._task is not None and not self._task.done():
                    self._heard.clear()
                    async with asyncio.timeout(QUIET_S):
                        await self._heard.wait()

    async def stop(self) -> None:
        """Reads no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for request in self._requests:
                self._heard.set()
                if not self._push.input_over.is_set():  # else it comes too late: left out
                    await self._take(request)
        except Exception as error:  # noqa: BLE001 - told to the client once the rest is safe
            self._push.end(error)
        finally:
            self._push.end()

    async def _take(self, request: ingest_pb2.IngestRequest) -> None:
        try:
            items = read_items(request)
            if items is None:
                self._push.finish()
            else:
                await self._push.offer(items)
        except RequestError as error:
            self._push.end(error)
