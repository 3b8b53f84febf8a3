"""What one push has to tell its client: how far it has come, and what went wrong first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from svc.engine.ingest_session import StreamStatus
from svc.ingest.events import Draining, Event, Finished, Pacer, Progress
from svc.ingest.media_worker import MediaReport

logger = logging.getLogger(__name__)


class Telling:
    """Gathers what is known of a push, and yields it at a pace. Used on the event loop."""

    def __init__(self, session_id: str, credit_items: int) -> None:
        """`credit_items`: how many a client may have sent that are not consumed."""
        self._session_id = session_id
        self._credit_items = credit_items
        self._pacer = Pacer()
        self._draining: Draining | None = None
        self.media = MediaReport()
        self.status = StreamStatus()
        self.announced_credit = credit_items
        """Items of the call that the client was told it may send."""
        self.error: Exception | None = None
        """The first fault."""
        self.finished = False
        """Whether the session is."""

    def see(self, status: StreamStatus) -> None:
        """Takes how far the session has come."""
        durable_moved = status.durable_unit_count != self.status.durable_unit_count
        self.status = status
        self._pacer.touch(urgent=durable_moved)

    def hear(self, media: MediaReport) -> None:
        """Takes how far the media side has come."""
        self.media = media
        left = self.announced_credit - media.consumed_item_count
        self._pacer.touch(urgent=2 * left <= self._credit_items)

    def note(self, error: Exception | None) -> None:
        """Keeps the first fault, which is what the client is told; later ones follow from it."""
        if error is None or error is self.error:
            return
        if self.error is None:
            self.error = error
        else:
            logger.info(
                "later fault of a push", extra={"session": self._session_id}, exc_info=error
            )

    def drain(self, grace_s: float) -> None:
        """Has the client told to stop sending."""
        self._draining = Draining(grace_s=grace_s)
        self._pacer.touch(urgent=True)

    async def events(self, task: asyncio.Task[None]) -> AsyncIterator[Event]:
        """Yields what the client is to know, until the push's task is done; one consumer.

        Raises:
            Exception: the first fault, after everything else was told.
        """
        told: Progress | None = None
        draining_told = False
        over = False
        task.add_done_callback(lambda _: self._pacer.touch(urgent=True))
        while not over:
            await self._pacer.wait()
            over = task.done()
            if self._draining is not None and not draining_told:
                draining_told = True
                yield self._draining
            progress = self._progress()
            if progress != told:
                told = progress
                self.announced_credit = progress.credit_item_count
                yield progress
        if self.error is not None:
            raise self.error
        if self.finished:
            yield Finished(progress=self._progress())

    def _progress(self) -> Progress:
        return Progress(
            media=self.media,
            stream=self.status,
            credit_item_count=self.media.consumed_item_count + self._credit_items,
        )
