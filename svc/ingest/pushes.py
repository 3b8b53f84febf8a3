"""The pushes that are open in this process: one a session, and what may happen beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from svc.ingest.push import Push
from svc.rpc.errors import Reason, RequestError

logger = logging.getLogger(__name__)

TAKEOVER_WAIT_S = 1.0
"""How long a call waits for word that the session's earlier call has ended."""
CUT_OFF_WAIT_S = 1.0
"""How long a push that is cut off at the end of a drain may take to let go of its session."""
RELEASE_WAIT_S = 10.0
"""How long it then waits until what that one accepted is on the disk."""


class Pushes:
    """Admits pushes, one per session, until the process drains."""

    def __init__(self, *, max_pushes: int) -> None:
        """`max_pushes` may be open at the same time."""
        self._max_pushes = max_pushes
        self._open: dict[str, tuple[Push, asyncio.Task[None]]] = {}
        self._held: dict[str, asyncio.Event] = {}
        self._draining = False

    def is_open(self, session_id: str) -> bool:
        """Whether a push of this process has a session open; from any thread."""
        return session_id in self._open

    @asynccontextmanager
    async def admission(self, session_id: str) -> AsyncIterator[None]:
        """Holds a session without a push, to look at it and then to `start` one.

        An earlier push whose call has ended is released first; one whose call goes on stays.

        Raises:
            RequestError: SESSION_IN_USE, TOO_MANY_CALLS or DRAINING.
        """
        self._check_admission(session_id)
        async with self._hold(session_id, Reason.SESSION_IN_USE):
            yield

    def start(self, push: Push) -> None:
        """Starts a push to a session that is held for its admission.

        Raises:
            RequestError: TOO_MANY_CALLS or DRAINING.
        """
        session_id = push.session_id
        assert session_id in self._held
        assert session_id not in self._open
        self._check_admission(session_id)
        task = push.start()
        self._open[session_id] = (push, task)
        task.add_done_callback(lambda _: self._open.pop(session_id))
        logger.info("push opened", extra={"session": session_id})

    @asynccontextmanager
    async def excluded(self, session_id: str) -> AsyncIterator[None]:
        """Keeps pushes away from a session, to finish, repair or delete it.

        Raises:
            RequestError: SESSION_BUSY: a push is open.
        """
        async with self._hold(session_id, Reason.SESSION_BUSY):
            yield

    @asynccontextmanager
    async def beside(self, session_id: str) -> AsyncIterator[Push | None]:
        """Gives the push that has a session open, or None and keeps pushes away from it.

        A push that has it no more, for it ends just now or lost it, is waited for.

        Raises:
            RequestError: SESSION_IN_USE: another call opens, finishes or deletes it.
        """
        while session_id in self._held:
            await self._wait_let_go(session_id, Reason.SESSION_IN_USE)
        entry = self._open.get(session_id)
        if entry is not None and entry[0].owns():
            yield entry[0]
            return
        async with self._hold(session_id, Reason.SESSION_IN_USE):
            yield None

    @asynccontextmanager
    async def idle(self, session_id: str) -> AsyncIterator[bool]:
        """Keeps pushes away from a session that nobody uses; gives False where somebody does.

        Nobody is waited for or hurried.
        """
        if self._draining or session_id in self._open or session_id in self._held:
            yield False
            return
        async with self._hold(session_id, Reason.SESSION_BUSY):
            yield True

    async def drain(self, grace_s: float) -> bool:
        """Admits no more, and ends what is open: half of the time is for clients to stop.

        Returns whether all were released in time. One that was not, for its decoder hangs, has
        been made durable as far as it was visible, and is cut off.
        """
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
        hanging = list(self._open.items())
        for session_id, (_, task) in hanging:
            logger.error("push not released in time", extra={"session": session_id})
            task.cancel()
        await self._wait_released(CUT_OFF_WAIT_S)
        return not hanging

    async def _wait_released(self, timeout_s: float) -> None:
        tasks = {task for _, task in self._open.values()}
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    @asynccontextmanager
    async def _hold(self, session_id: str, reason: Reason) -> AsyncIterator[None]:
        """Waits until the session has no push and no other holder, and keeps it so."""
        while session_id in self._open or session_id in self._held:
            await self._vacate(session_id, reason)
            await self._wait_let_go(session_id, reason)
        let_go = self._held[session_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._held[session_id]
            let_go.set()

    async def _wait_let_go(self, session_id: str, reason: Reason) -> None:
        held = self._held.get(session_id)
        if held is not None and not await _set_within(held, RELEASE_WAIT_S):
            raise RequestError(
                reason,
                f"session {session_id!r} is being opened, finished or deleted by another call",
                session_id=session_id,
            )

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
        if len(self._open) >= self._max_pushes and session_id not in self._open:
            raise RequestError(
                Reason.TOO_MANY_CALLS,
                f"{len(self._open)} ingest calls are open, at most {self._max_pushes} are allowed",
                open_call_count=len(self._open),
                max_call_count=self._max_pushes,
            )


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
