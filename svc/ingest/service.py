"""IngestService: one call, from its first message to its last."""

from __future__ import annotations

import asyncio
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
        session = await asyncio.to_thread(app.sessions.get_pushable, opening.session_id)
        with log_fields(session=opening.session_id):
            push = await app.pushes.open(
                opening.session_id, lambda: app.make_push(session, opening.media)
            )
            reading: asyncio.Task[None] | None = None
            try:
                held = await push.opened()
                reading = asyncio.create_task(_read(requests, push))
                yield opened_message(
                    held,
                    credit_items=app.settings.credit_items,
                    target_fps=session.settings.sample_fps,
                )
                async for event in push.events():
                    yield event_message(event)
            finally:
                push.end()
                if reading is not None:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)


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


async def _read(requests: AsyncIterator[ingest_pb2.IngestRequest], push: Push) -> None:
    """Hands what the client sends to the push, until it ends one way or another."""
    try:
        async for request in requests:
            items = read_items(request)
            if items is None:
                push.finish()
                return
            await push.offer(items)
    except Exception as error:  # noqa: BLE001 - told to the client once the rest is safe
        push.end(error)
    finally:
        push.end()
