"""A push that goes on until the server has everything, over lost connections and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from lookback.v1 import ingest_pb2_grpc
from svc.client.errors import CONNECTION_LOST, GAVE_UP, TIMED_OUT, UNREACHABLE, LookbackError
from svc.client.events import (
    PushEvent,
    PushFinished,
    PushLeft,
    PushOpened,
    PushProgress,
    PushReconnecting,
)
from svc.client.places import MAX_HOPS, SESSION_ELSEWHERE, named_address
from svc.client.push_call import PushCall
from svc.client.push_plan import PushPlan
from svc.client.readiness import NOT_READY
from svc.client.waiting import unless

_SESSION_FINISHED = "SESSION_FINISHED"
_LOST = (CONNECTION_LOST, UNREACHABLE, TIMED_OUT)
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0
_OPEN_WITHIN_S = 5.0


class Push:
    """Runs once, by `events`."""

    def __init__(
        self,
        plan: PushPlan,
        *,
        give_up_after_s: float,
        ready_within_s: float,
        final_progress: Callable[[], Awaitable[PushProgress]],
        stub_at: Callable[[str], Awaitable[ingest_pb2_grpc.IngestServiceAsyncStub]],
    ) -> None:
        """`final_progress` asks how far a session has come that turns out to be finished;
        `stub_at` connects to a server that another one has named."""
        if not give_up_after_s >= 0:
            raise ValueError(f"give_up_after_s must be >= 0, got {give_up_after_s}")
        self._home = self._plan = plan
        self._stub_at = stub_at
        self._hop_count = 0
        self._give_up_after_s = give_up_after_s
        self._ready_within_s = ready_within_s
        self._final_progress = final_progress

        self._opened_count = 0
        self._finish_sent = False
        self._progress: PushProgress | None = None
        self._farthest_s = (float("-inf"), float("-inf"))
        self._down_since: float | None = None
        self._failure_count = 0

    async def events(self) -> AsyncGenerator[PushEvent, None]:
        """Yields what happens; the last is PushFinished or PushLeft."""
        listen_closely = False
        try:
            while True:
                try:
                    async with contextlib.aclosing(self._call_events(listen_closely)) as events:
                        async for event in events:
                            yield event
                    return
                except LookbackError as error:
                    if self._finish_sent and error.reason == _SESSION_FINISHED:
                        # Our finish was taken, and its acknowledgement is what got lost; or it was
                        # another's, while we were away.
                        progress = await self._final_progress()
                        self._plan.tail.check(progress)
                        yield PushFinished(progress=progress)
                        return
                    reconnecting = await self._sent_on(error) or self._reconnecting(error)
                    listen_closely = error.reason == CONNECTION_LOST
                yield reconnecting
                await unless(self._plan.stop, asyncio.sleep(reconnecting.wait_s))
                if self._plan.stop.is_set():
                    yield PushLeft(progress=self._progress)
                    return
        finally:
            await self._plan.cursor.close()

    async def _call_events(self, listen_closely: bool) -> AsyncGenerator[PushEvent, None]:
        call = PushCall(
            self._plan, reconnect_count=self._opened_count, listen_closely=listen_closely
        )
        try:
            async with contextlib.aclosing(call.events()) as events:
                async for event in events:
                    self._note(event)
                    yield event
        finally:
            self._finish_sent = self._finish_sent or call.finish_sent

    async def _sent_on(self, error: LookbackError) -> PushReconnecting | None:
        """Turns to the server that the last one named; to the first one after any other end."""
        address = named_address(error, self._plan.address)
        if address is None or self._hop_count == MAX_HOPS:
            self._plan = self._home
            return None
        self._hop_count += 1
        self._plan = replace(self._home, stub=await self._stub_at(address), address=address)
        return PushReconnecting(error=error, wait_s=0.0, give_up_in_s=self._give_up_after_s)

    def _note(self, event: PushEvent) -> None:
        if isinstance(event, PushOpened):
            self._opened_count += 1
            self._hop_count = 0
        elif isinstance(event, PushProgress):
            self._progress = event
            reached_s = tuple(
                float("-inf") if each is None else each
                for each in (event.durable_pts_s, event.received_pts_s)
            )
            # Only what no call before reached counts: a server that dies of the same frame each
            # time must not be fed it for ever.
            if any(now > best for now, best in zip(reached_s, self._farthest_s, strict=True)):
                durable_s, received_s = map(max, reached_s, self._farthest_s)
                self._farthest_s = (durable_s, received_s)
                self._down_since, self._failure_count = None, 0

    def _reconnecting(self, error: LookbackError) -> PushReconnecting:
        """Returns when to open again; raises where that would not help, or not any more."""
        moving = error.reason == SESSION_ELSEWHERE and self._hop_count > 0
        if error.reason not in _LOST and error.retry_after_s is None and not moving:
            raise error
        was_sent_on, self._hop_count = self._hop_count > 0, 0
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
        # A server that sends us on is there: the one it names may be, or its lease may end.
        met = self._opened_count or was_sent_on
        open_within_s = self._ready_within_s if error.reason == NOT_READY else _OPEN_WITHIN_S
        limit_s = self._give_up_after_s if met else open_within_s
        left_s = min(limit_s, self._give_up_after_s) - (now - self._down_since)
        if left_s <= 0:
            if not self._opened_count:
                raise error
            raise LookbackError(
                reason=GAVE_UP,
                message=f"could not go on within {self._give_up_after_s:g} s: {error.message}",
                metadata={**error.metadata, "last_reason": error.reason},
                code=error.code,
            ) from error
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self._failure_count)
        wait_s = max(wait_s * random.uniform(0.5, 1.0), error.retry_after_s or 0.0)
        self._failure_count += 1
        return PushReconnecting(error=error, wait_s=min(wait_s, left_s), give_up_in_s=left_s)
