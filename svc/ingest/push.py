"""One ingest call behind gRPC: from items to a durable session, and word of how far it has come.

Methods run on the event loop. A push owns its session from `start` to its end:

    opening -> taking items -> input over (finish, end, fault) -> flushing -> closed

The call that made it may go at any point; the push still brings what it accepted to the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from svc.engine.ingest_session import StreamIngest, StreamStatus
from svc.ingest.encode_thread import LaneFailedError
from svc.ingest.events import Event
from svc.ingest.media_worker import MediaReport, MediaWorker, size_bytes
from svc.ingest.ownership import Owned, lost_error, while_held
from svc.ingest.stream import MakeWorker, StreamLane, StreamThread
from svc.ingest.telling import Telling
from svc.rpc.errors import Reason, RequestError
from svc.video.frames import Item

logger = logging.getLogger(__name__)

T = TypeVar("T")

IDLE_FLUSH_S = 5.0
"""What is visible becomes durable when no unit has come for this long."""
MAX_QUEUED_BYTES = 32 * 2**20
"""Media that may wait in one call; beyond it the call is not read, and the client feels it."""


class Push:
    """The pipeline of one ingest call."""

    def __init__(
        self,
        *,
        session_id: str,
        owned: Owned,
        open_stream: Callable[[], StreamIngest],
        make_worker: MakeWorker,
        finish_session: Callable[[], object],
        encode_thread: StreamThread,
        media_threads: Executor,
        credit_items: int,
    ) -> None:
        """`open_stream` and `finish_session` run on the encode thread, `make_worker` on a media
        one. `owned` is given back at the end."""
        self.session_id = session_id
        self._owned = owned
        self._open_stream = open_stream
        self._make_worker = make_worker
        self._finish_session = finish_session
        self._encode_thread = encode_thread
        self._media_threads = media_threads
        self._telling = Telling(session_id, credit_items)
        self._loop = asyncio.get_running_loop()
        self._opened = asyncio.Event()
        self._input_over = asyncio.Event()
        self._room = asyncio.Event()
        self._changing = asyncio.Lock()
        """Held by what `between_units` runs: the session is let go of only after it."""
        self._worker: MediaWorker | None = None
        self._stream: StreamIngest | None = None
        self._lane: StreamLane | None = None
        self._accepted_item_count = 0
        self._accepted_bytes = 0
        self._finishing = False
        self._task: asyncio.Task[None] | None = None

    # What the client does.

    def start(self) -> asyncio.Task[None]:
        """Begins to open the session; the task ends, without an error, when it is released."""
        self._task = self._loop.create_task(self._run(), name=f"push {self.session_id}")
        return self._task

    async def opened(self) -> StreamStatus:
        """Returns what the session held when it was opened.

        Raises:
            Exception: why it could not be opened.
        """
        await self._opened.wait()
        if self._telling.error is not None:
            raise self._telling.error
        return self._telling.status

    async def offer(self, items: Sequence[Item]) -> None:
        """Accepts items, then waits while too many bytes are queued.

        Raises:
            RequestError: there are more than the credit; those within it are accepted.
        """
        assert self._worker is not None
        allowed_count = self._telling.announced_credit
        accepted = items[: allowed_count - self._accepted_item_count]
        for item in accepted:
            self._worker.offer(item)
            self._accepted_bytes += size_bytes(item)
        self._accepted_item_count += len(accepted)
        if len(accepted) < len(items):
            sent_count = self._accepted_item_count + len(items) - len(accepted)
            raise RequestError(
                Reason.CREDIT_EXCEEDED,
                f"{sent_count} items were sent in this call, {allowed_count} were allowed",
                sent_item_count=sent_count,
                credit_item_count=allowed_count,
            )
        while self._accepted_bytes - self._telling.media.consumed_bytes > MAX_QUEUED_BYTES:
            if self._input_over.is_set():
                return
            self._room.clear()
            await self._room.wait()

    def finish(self) -> None:
        """The video is over."""
        if not self._input_over.is_set():
            self._input_over.set()
            self._finishing = True
            if self._worker is not None:
                self._worker.finish()

    def end(self, error: Exception | None = None) -> None:
        """No more comes, though the video is not over; `error` is told after all is processed."""
        if not self._input_over.is_set():
            self._input_over.set()
            self._telling.note(error)
            if self._worker is not None:
                self._worker.cut()

    def abandon(self, error: Exception | None = None) -> None:
        """Ends the input, and leaves what has not been decoded yet."""
        self._input_over.set()
        self._room.set()
        self._telling.note(error)
        if self._worker is not None:
            self._worker.abandon()

    def hurry(self) -> None:
        """Abandons a push whose call ended without `finish`: its client will send it again."""
        if self._input_over.is_set() and not self._finishing:
            self.abandon()

    # What its owner asks.

    async def between_units(self, work: Callable[[], T]) -> T:
        """Returns what `work` returns, which runs while nothing is written or dropped.

        Raises:
            RequestError: LEASE_LOST: the session is not this push's any more; `work` did not begin.
            Exception: of `work`.
        """
        async with self._changing:
            held = partial(while_held, self._owned, self.session_id, work)
            return await asyncio.wrap_future(self._encode_thread.submit(held))

    def owns(self) -> bool:
        """Whether the session is still this push's."""
        return self._owned.held()

    @property
    def input_over(self) -> asyncio.Event:
        """Set when no more items will come."""
        return self._input_over

    async def drain(self, grace_s: float) -> None:
        """Tells the client to stop sending, and makes durable what is visible."""
        self._telling.drain(grace_s)
        if self._lane is not None and self._stream is not None:
            await self._flush(self._stream, self._lane)

    def events(self) -> AsyncIterator[Event]:
        """Yields what the client is to know, until the session is released; one consumer.

        Raises:
            Exception: why the push ended early, after everything accepted was processed.
        """
        assert self._task is not None
        return self._telling.events(self._task)

    # The pipeline.

    async def _run(self) -> None:
        watching = asyncio.create_task(self._end_when_lost())
        try:
            await self._run_owned()
        finally:
            watching.cancel()
            async with self._changing:
                await self._owned.release()

    async def _end_when_lost(self) -> None:
        await self._owned.lost.wait()
        self.abandon(lost_error(self.session_id))

    async def _run_owned(self) -> None:
        try:
            stream = await asyncio.wrap_future(self._encode_thread.submit(self._open_stream))
        except Exception as error:  # noqa: BLE001 - told by `opened`
            self._telling.note(error)
            self._opened.set()
            return
        lane = self._encode_thread.lane(stream, partial(self._encoded, stream))
        self._stream, self._lane = stream, lane
        self._telling.status = stream.status
        try:
            self._check_published(stream.status)
            await self._pump(stream, lane)
        except Exception as error:  # noqa: BLE001 - told by `events`
            self._telling.note(error)
        finally:
            await self._close(stream, lane)
            self._opened.set()
            logger.info(
                "push ended",
                extra={
                    "session": self.session_id,
                    "durable_unit_count": self._telling.status.durable_unit_count,
                    "finished": self._telling.finished,
                    "error": self._telling.error and type(self._telling.error).__name__,
                },
            )

    def _check_published(self, status: StreamStatus) -> None:
        published = self._owned.published_unit_count
        if published > status.durable_unit_count:
            raise RequestError(
                Reason.STORE_DAMAGED,
                f"{published} units of session {self.session_id!r} were acknowledged, "
                f"{status.durable_unit_count} are on the disk",
                session_id=self.session_id,
                acknowledged=published,
                stored=status.durable_unit_count,
            )

    async def _pump(self, stream: StreamIngest, lane: StreamLane) -> None:
        """From the first item to everything on the disk; faults of the media are noted."""
        worker = await self._loop.run_in_executor(
            self._media_threads,
            self._make_worker,
            stream.resume,
            lane.put,
            self._reporting(stream),
        )
        self._worker = worker
        if self._input_over.is_set():  # the call ended while the session was being opened
            worker.abandon()
        self._opened.set()
        running = self._loop.run_in_executor(self._media_threads, worker.run)
        media_over = False
        try:
            await self._flush_when_idle(running, stream, lane)
            media_over = await running
        except Exception as error:  # noqa: BLE001 - told by `events`, once the rest is safe
            self.abandon(lane.failure if isinstance(error, LaneFailedError) else error)
            await asyncio.gather(running, return_exceptions=True)
        await self._flush(stream, lane)
        self._telling.note(lane.failure)
        if media_over and self._telling.error is None:
            finishing = partial(while_held, self._owned, self.session_id, self._finish_session)
            await asyncio.wrap_future(lane.submit(finishing))
            self._telling.finished = True
            status = self._telling.status
            self._owned.announce(status.durable_unit_count, status.durable_pts_s, state="finished")

    async def _flush_when_idle(
        self, running: asyncio.Future[bool], stream: StreamIngest, lane: StreamLane
    ) -> None:
        """Returns when the worker has ended."""
        visible_count = -1
        while not (await asyncio.wait({running}, timeout=IDLE_FLUSH_S))[0]:
            status = stream.status
            if status.visible_unit_count == visible_count:
                await self._flush(stream, lane)
            visible_count = status.visible_unit_count

    async def _flush(self, stream: StreamIngest, lane: StreamLane) -> None:
        """Makes durable what is visible; after a failed encode too, if the store still can."""
        await asyncio.wrap_future(lane.submit(stream.flush))
        self._see(stream.status)

    async def _close(self, stream: StreamIngest, lane: StreamLane) -> None:
        try:
            await asyncio.wrap_future(lane.submit(stream.close))
        except Exception as error:  # noqa: BLE001 - the session is let go of all the same
            self._telling.note(error)

    # Word from the threads.

    def _encoded(self, stream: StreamIngest, error: Exception | None) -> None:
        if error is not None:
            # The worker may be waiting for items, and would hear of it with the next unit.
            self._loop.call_soon_threadsafe(self.abandon, error)
        self._loop.call_soon_threadsafe(self._see, stream.status)

    def _reporting(self, stream: StreamIngest) -> Callable[[MediaReport], None]:
        def report(media: MediaReport) -> None:
            # First where QA reads it: what a client is told of, it may ask about.
            if media.received_pts_s is not None:
                stream.received(media.received_pts_s, media.unit_count)
            self._loop.call_soon_threadsafe(self._hear, media)

        return report

    def _see(self, status: StreamStatus) -> None:
        if status.durable_unit_count != self._telling.status.durable_unit_count:
            self._owned.announce(status.durable_unit_count, status.durable_pts_s)
        self._telling.see(status)

    def _hear(self, media: MediaReport) -> None:
        self._telling.hear(media)
        self._room.set()
