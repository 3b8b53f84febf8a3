"""One ingest call: opens, sends within the credit, listens; knows nothing of the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeAlias

import grpc

from lookback.v1 import ingest_pb2
from svc.client.errors import (
    CONNECTION_LOST,
    ITEM_TOO_LARGE,
    TIMED_OUT,
    LookbackError,
    error_from_call,
)
from svc.client.events import (
    PushEvent,
    PushFinished,
    PushLeft,
    PushOpened,
    PushProgress,
    progress_from,
)
from svc.client.messages import (
    FINISH_REQUEST,
    ITEM_OVERHEAD_BYTES,
    items_request,
    share_a_message,
)
from svc.client.push_plan import PushPlan
from svc.client.waiting import cancelled, unless
from svc.video.frames import Item

_OPEN_TIMEOUT_S = 60.0  # a server that has to rebuild an index first takes its time
_BATCH_BYTES = 2**20
_BATCH_COUNT = 32
_PAUSE_S = 0.02
_PAUSE_COUNT = 128  # more than lie between what is durable and what a server has choked on

_Call: TypeAlias = "grpc.aio.StreamStreamCall[ingest_pb2.IngestRequest, ingest_pb2.IngestResponse]"


class PushCall:
    """Runs once, by `events`."""

    def __init__(self, plan: PushPlan, *, reconnect_count: int, listen_closely: bool) -> None:
        """`listen_closely`: the call before ended without a status, perhaps because a write was
        under way; pause between the first writes, so that the reason is heard this time."""
        self._plan = plan
        self._cursor = plan.cursor
        self._reconnect_count = reconnect_count
        self._pauses_left = _PAUSE_COUNT if listen_closely else 0

        self.finish_sent = False
        self._draining = False
        self._half_closed = False
        self._halt = asyncio.Event()  # no more is to be sent in this call
        self._credit_item_count = 0
        self._credit_grew = asyncio.Event()
        self._sent_item_count = 0
        self._message_bytes = _BATCH_BYTES
        self._progress: PushProgress | None = None

    async def events(self) -> AsyncGenerator[PushEvent, None]:
        """Yields what happens; the last is PushFinished or PushLeft.

        Raises:
            LookbackError: the call ended otherwise.
            Exception: what the source raised.
        """
        call = self._plan.stub.Ingest()
        following = asyncio.create_task(self._follow_stop())
        sending: asyncio.Task[None] | None = None
        try:
            opened = await unless(self._plan.stop, self._open(call))
            if opened is None:
                yield PushLeft(progress=None)
                return
            gap = await self._cursor.start(_resume_s(opened))
            yield PushOpened(
                durable_pts_s=_durable_s(opened),
                target_fps=opened.target_fps,
                reconnect_count=self._reconnect_count,
                window_rounded=opened.window_rounded,
            )
            if gap is not None:
                yield gap
            sending = asyncio.create_task(self._send(call))
            while (response := await self._next_response(call, sending)) is not None:
                event = self._take(response)
                if event is not None:
                    yield event
                if isinstance(event, PushFinished):
                    return
            if self._draining:
                raise self._lost("the server is stopping")
            if not self._half_closed:
                raise self._lost("the server ended the call before the video was over")
            yield PushLeft(progress=self._progress)
        finally:
            await cancelled(following)
            if sending is not None:
                await cancelled(sending)
            call.cancel()

    async def _open(self, call: _Call) -> ingest_pb2.Opened:
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                await self._write(call, self._plan.opening)
                response = await self._read(call)
        except TimeoutError:
            address = self._plan.address
            raise LookbackError(
                reason=TIMED_OUT,
                message=f"{address} did not open the session within {_OPEN_TIMEOUT_S:g} s",
                metadata={"address": address, "timeout_s": str(_OPEN_TIMEOUT_S)},
                code=grpc.StatusCode.DEADLINE_EXCEEDED,
            ) from None
        if response is None:
            raise self._lost("the server ended the call before it was open")
        opened = response.opened
        self._grant(opened.credit_item_count)
        self._message_bytes = opened.max_message_bytes or _BATCH_BYTES
        self._plan.pacer.start(_resume_s(opened))
        self._plan.tail.target_fps = opened.target_fps
        return opened

    def _take(self, response: ingest_pb2.IngestResponse) -> PushEvent | None:
        match response.WhichOneof("response"):
            case "progress":
                self._grant(response.progress.credit_item_count)
                return self._heard(response.progress)
            case "draining":
                self._draining = True
                self._halt.set()
            case "finished":
                return PushFinished(progress=self._heard(response.finished.progress))
        return None  # an arm of a newer protocol says nothing we need

    def _heard(self, message: ingest_pb2.Progress) -> PushProgress:
        self._progress = progress_from(message, self._sent_item_count)
        if self._progress.durable_pts_s is not None:
            self._cursor.acknowledge(self._progress.durable_pts_s)
        return self._progress

    def _grant(self, credit_item_count: int) -> None:
        if credit_item_count > self._credit_item_count:
            self._credit_item_count = credit_item_count
            self._credit_grew.set()

    async def _send(self, call: _Call) -> None:
        while not self._halt.is_set():
            if self._sent_item_count >= self._credit_item_count:
                await unless(self._halt, self._room())
            item = self._cursor.peek() or await unless(self._halt, self._cursor.head())
            if item is None:
                break
            if (due_in_s := self._plan.pacer.due_in_s(item)) > 0:
                await unless(self._halt, asyncio.sleep(due_in_s))
            if self._halt.is_set():
                break
            batch = self._batch()
            self._sent_item_count += len(batch)
            if not await self._write(call, items_request(batch)):
                return
            if self._pauses_left > 0:
                self._pauses_left -= 1
                await unless(self._halt, asyncio.sleep(_PAUSE_S))
        if self._plan.finish and not self._halt.is_set():
            self.finish_sent = True
            await self._write(call, FINISH_REQUEST)
        else:
            self._half_closed = True
            await call.done_writing()

    def _batch(self) -> list[Item]:
        """Takes the next item and those that may go with it now."""
        items: list[Item] = []
        batch_bytes = 0
        room = min(_BATCH_COUNT, self._credit_item_count - self._sent_item_count)
        while len(items) < room and (item := self._cursor.peek()) is not None:
            item_bytes = len(item.data) + ITEM_OVERHEAD_BYTES
            if item_bytes > self._message_bytes:
                raise LookbackError(
                    reason=ITEM_TOO_LARGE,
                    message=f"an item of {len(item.data)} bytes does not fit in a message of "
                    f"{self._message_bytes} bytes",
                    metadata={
                        "item_bytes": str(len(item.data)),
                        "max_message_bytes": str(self._message_bytes),
                    },
                )
            if items and (
                batch_bytes + item_bytes > min(_BATCH_BYTES, self._message_bytes)
                or not share_a_message(items, item)
                or self._plan.pacer.due_in_s(item) > 0
            ):
                break
            self._cursor.pop()
            self._plan.tail.add(item)
            items.append(item)
            batch_bytes += item_bytes
        return items

    async def _room(self) -> None:
        while self._sent_item_count >= self._credit_item_count:
            self._credit_grew.clear()
            await self._credit_grew.wait()

    async def _follow_stop(self) -> None:
        await self._plan.stop.wait()
        self._halt.set()

    async def _write(self, call: _Call, request: ingest_pb2.IngestRequest) -> bool:
        """Tells whether the call took it; if not it is over, and reading says why."""
        try:
            await call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def _next_response(
        self, call: _Call, sending: asyncio.Task[None]
    ) -> ingest_pb2.IngestResponse | None:
        """Waits for a response; None at the end of the call. Raises what ended the sending."""
        reading = asyncio.create_task(self._read(call))
        try:
            if not sending.done():
                await asyncio.wait({reading, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            return await reading
        finally:
            await cancelled(reading)

    async def _read(self, call: _Call) -> ingest_pb2.IngestResponse | None:
        try:
            response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise error_from_call(error, self._plan.address) from error
        return response if isinstance(response, ingest_pb2.IngestResponse) else None

    def _lost(self, message: str) -> LookbackError:
        return LookbackError(
            reason=CONNECTION_LOST,
            message=message,
            metadata={"address": self._plan.address},
            code=grpc.StatusCode.UNAVAILABLE,
        )


def _durable_s(opened: ingest_pb2.Opened) -> float | None:
    return opened.durable_pts_s if opened.HasField("durable_pts_s") else None


def _resume_s(opened: ingest_pb2.Opened) -> float | None:
    """Returns up to where the server has this source; another one's times say nothing of it."""
    return None if opened.joined else _durable_s(opened)
