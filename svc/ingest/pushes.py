"""The pushes that are open in this process: one a session, and what may happen beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from svc.ingest.push import Push
from svc.rpc.errors import Reason, RequestError

logger = logging.getLogger(__name__)

TAKEOVER_WAIT_S = 1.0
"""How long a call waits for word that the session's earlier call has ended."""
RELEASE_WAIT_S = 10.0
"""How long it then waits until what that one accepted is on the disk."""


class Pushes:
    """Admits pushes, one per session, until the process drains."""

    def __init__(self, *, max_pushes: int) -> None:
        """`max_pushes` may be open at the same time."""
        self._max_pushes = max_pushes
        self._open: dict[str, tuple[Push, asyncio.Task[None]]] = {}
        self._excluded: set[str] = set()
        self._draining = False

    async def open(self, session_id: str, make_push: Callable[[], Push]) -> Push:
        """Starts the push that `make_push` makes, once the session's earlier one is gone.

        An earlier push whose call has ended is released at once; one whose call goes on stays.

        Raises:
            RequestError: SESSION_IN_USE, SESSION_BUSY, TOO_MANY_CALLS or DRAINING.
        """
        self._check_admission(session_id)
        await self._vacate(session_id, Reason.SESSION_IN_USE)
        self._check_admission(session_id)
        push = make_push()
        task = push.start()
        self._open[session_id] = (push, task)
        task.add_done_callback(lambda _: self._open.pop(session_id))
        logger.info("push opened", extra={"session": session_id})
        return push

    @asynccontextmanager
    async def excluded(self, session_id: str) -> AsyncIterator[None]:
        """Keeps pushes away from a session, to delete it.

        Raises:
            RequestError: SESSION_BUSY: a push is open, or someone else is doing the same.
        """
        self._check_excluded(session_id)
        await self._vacate(session_id, Reason.SESSION_BUSY)
        self._check_excluded(session_id)
        self._excluded.add(session_id)
        try:
            yield
        finally:
            self._excluded.discard(session_id)

    async def drain(self, grace_s: float) -> None:
        """Admits no more, and ends what is open: half of the time is for clients to stop."""
        self._draining = True
        refusal = RequestError(Reason.DRAINING, "the server is stopping; open again later")
        flushes = [asyncio.create_task(push.drain(grace_s / 2)) for push, _ in self._open.values()]
        await self._wait_released(grace_s / 2)
        for push, _ in list(self._open.values()):
            push.abandon(refusal)
        await self._wait_released(grace_s / 2)
        for flush in flushes:
            flush.cancel()
        await asyncio.gather(*flushes, return_exceptions=True)
        for session_id in self._open:
            logger.warning("push not released in time", extra={"session": session_id})

    async def _wait_released(self, timeout_s: float) -> None:
        tasks = {task for _, task in self._open.values()}
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _vacate(self, session_id: str, reason: Reason) -> None:
        """Waits until no push of the session is open; hurries one whose call has ended."""
        while (entry := self._open.get(session_id)) is not None:
            push, task = entry
            if not await _set_within(push.input_over, TAKEOVER_WAIT_S):
                raise RequestError(
                    reason,
                    f"session {session_id!r} has an open ingest call; one is allowed",
                    session_id=session_id,
                )
            push.hurry()
            done, _ = await asyncio.wait({task}, timeout=RELEASE_WAIT_S)
            if not done:
                raise RequestError(
                    reason,
                    f"session {session_id!r} is still storing what an earlier call sent",
                    session_id=session_id,
                )

    def _check_admission(self, session_id: str) -> None:
        if self._draining:
            raise RequestError(Reason.DRAINING, "the server is stopping; open again later")
        self._check_excluded(session_id)
        if len(self._open) >= self._max_pushes and session_id not in self._open:
            raise RequestError(
                Reason.TOO_MANY_CALLS,
                f"{len(self._open)} ingest calls are open, at most {self._max_pushes} are allowed",
                open_call_count=len(self._open),
                max_call_count=self._max_pushes,
            )

    def _check_excluded(self, session_id: str) -> None:
        if session_id in self._excluded:
            raise RequestError(
                Reason.SESSION_BUSY,
                f"session {session_id!r} is being deleted",
                session_id=session_id,
            )


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
