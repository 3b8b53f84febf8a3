"""Threads that read sessions for questions: a disk that does not answer holds a few, and no more.

A thread that waits for a disk cannot be stopped. Its question may be given up; the thread is held
until the disk answers, and counts until then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from svc.daemon_threads import DaemonThreads
from svc.rpc.errors import Reason, RequestError

T = TypeVar("T")


class DiskThreads:
    """Runs blocking reads, some at a time for each session. Used on the event loop.

    Other reads of a session wait their turn without a thread, and leave when they are cancelled.
    None of the threads keeps the process from ending.
    """

    def __init__(self, *, max_count: int, max_count_per_session: int) -> None:
        """Neither bound is ever exceeded; `max_count` is over all sessions."""
        self._max_count = max_count
        self._max_count_per_session = max_count_per_session
        self._threads = DaemonThreads("disk")
        self._count = 0
        self._given_up_counts: Counter[str] = Counter()
        # A session's turns live while a read of it waits or runs.
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(
        self,
        session_id: str,
        work: Callable[[], T],
        *,
        when_given_up: Callable[[asyncio.Future[T]], None],
    ) -> T:
        """Returns what `work` returns on a thread.

        `when_given_up` is called with the work under way when the caller is cancelled while it
        runs; work that has not begun by then never does.

        Raises:
            RequestError: TOO_MANY_CALLS; threads of questions that were given up hold all that
                this session, or all sessions, may have.
            Exception: of `work`.
        """
        turns = self._turns.setdefault(session_id, asyncio.Semaphore(self._max_count_per_session))
        self._refuse_if_held(session_id)
        await turns.acquire()
        try:
            self._refuse_if_held(session_id)
            working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except BaseException:
            turns.release()
            raise
        self._count += 1

        def let_go(_: asyncio.Future[T]) -> None:
            self._count -= 1
            turns.release()

        working.add_done_callback(let_go)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            self._given_up_counts[session_id] += 1
            working.add_done_callback(lambda _: self._forget(session_id))
            when_given_up(working)
            raise

    def _refuse_if_held(self, session_id: str) -> None:
        held, allowed = self._given_up_counts[session_id], self._max_count_per_session
        if held >= allowed:
            raise RequestError(
                Reason.TOO_MANY_CALLS,
                f"{held} threads still read session {session_id!r} for questions that were given "
                f"up, {allowed} are allowed",
                session_id=session_id,
                open=held,
                allowed=allowed,
            )
        if self._count >= self._max_count:
            raise RequestError(
                Reason.TOO_MANY_CALLS,
                f"{self._count} threads read sessions, {self._max_count} are allowed; "
                f"{self._given_up_counts.total()} of them for questions that were given up",
                open=self._count,
                allowed=self._max_count,
            )

    def _forget(self, session_id: str) -> None:
        self._given_up_counts[session_id] -= 1
        if not self._given_up_counts[session_id]:
            del self._given_up_counts[session_id]
