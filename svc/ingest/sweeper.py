"""Letting go of what is old in sessions that nobody pushes to, of what is beyond a budget that was
made smaller, and of more when the store is short.

One process of a store sweeps, on threads of the lowest priority. A session is looked at without a
lock; only one that is to let go of something is held, and taken from other processes, as a repair
takes it. A push that is open does this for its own session.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from kvstore.errors import KVStoreError, SessionNotFoundError
from svc.config import Settings
from svc.ingest.idle_sessions import Due, IdleSession, IdleSessions
from svc.ingest.idle_times import IdleTimes
from svc.ingest.ownership import Owned
from svc.ingest.pushes import Pushes
from svc.ingest.sessions import Sessions
from svc.rpc.errors import RequestError

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 30.0
"""How often the store is looked over: a record and a page a session, where none has changed."""
_SAVE_EVERY_S = 600.0
"""How much of what was counted a crash may cost: things are then kept so much longer."""
_LOWEST_PRIORITY = 19

T = TypeVar("T")


class Sweeper:
    """Looks all sessions over from time to time, until its task is cancelled."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        *,
        pushes: Pushes,
        take: Callable[[str], Awaitable[Owned]],
        delete: Callable[[str, Owned], Awaitable[None]],
    ) -> None:
        """Nothing is looked at yet.

        Args:
            settings: what holds for sessions that say nothing themselves.
            sessions: of the store.
            pushes: that are open in this process.
            take: makes a session ours.
            delete: deletes a session that is ours, which is then not to be released.
        """
        self._root = settings.data_dir
        self._idle = IdleSessions(settings, sessions, is_pushed=pushes.is_open)
        self._pushes = pushes
        self._take = take
        self._delete = delete
        self._times: IdleTimes | None = None
        self._saved_s = time.monotonic()

    async def run(self, threads: Executor) -> None:
        """Sweeps again and again; what fails is logged and tried again."""
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                try:
                    await self.sweep(threads)
                except Exception:
                    logger.exception("sweeping failed; it is tried again")
        finally:
            self.close()

    def close(self) -> None:
        """Writes down what was counted, and lets another process sweep."""
        times, self._times = self._times, None
        if times is not None:
            times.save()
            times.close()

    async def sweep(self, threads: Executor) -> None:
        """Looks all sessions over once."""
        if self._times is None:
            self._times = await _run(threads, lambda: IdleTimes.open(self._root))
            if self._times is None:
                return  # another process of this store does it
        found = await _run(threads, self._idle.look)
        seen_s = self._times.look({idle.session_id: idle.mark for idle in found})
        if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self._saved_s = time.monotonic()
            await _run(threads, self._times.save)
        gone = False
        for idle in found:
            if idle.rules.retain_s:
                look = partial(self._idle.due_for_age, idle, seen_s[idle.session_id])
                gone |= await self._clear(threads, idle, look)
        if gone:  # what is due for another reason is reckoned from what is left
            found = await _run(threads, self._idle.look)
        gone = False
        for idle in found:
            if idle.rules.budget.session_bytes:
                gone |= await self._clear(threads, idle, partial(self._idle.due_for_budget, idle))
        if gone:
            found = await _run(threads, self._idle.look)
        for idle, due in await _run(threads, lambda: self._idle.due_for_room(found)):
            await self._let_go(threads, idle, due)

    async def _clear(
        self, threads: Executor, idle: IdleSession, look: Callable[[], Due | None]
    ) -> bool:
        """Has a session let go of what `look` says; returns whether something may have gone."""
        try:
            due = await _run(threads, look)
        except SessionNotFoundError:
            return False  # deleted meanwhile
        except (KVStoreError, OSError) as error:
            self._idle.tell_left_alone(idle.session_id, error)
            return False
        return due is not None and await self._let_go(threads, idle, due)

    async def _let_go(self, threads: Executor, idle: IdleSession, due: Due) -> bool:
        """Has a session let go of what is due, while it is ours and still as it was.

        Returns:
            Whether something may have gone.
        """
        session_id = idle.session_id
        begun = False
        try:
            async with self._pushes.idle(session_id) as is_idle:
                if not is_idle:
                    return False
                owned = await self._take(session_id)
                gone = False
                try:
                    if not await _run(threads, lambda: self._idle.still(idle)):
                        return False
                    begun = True
                    if due.whole:
                        gone = await self._delete_whole(threads, idle, owned)
                    else:
                        await _run(threads, lambda: self._idle.drop(idle, due, owned.held))
                finally:
                    if not gone:
                        await owned.release()
        except SessionNotFoundError:
            pass  # deleted meanwhile
        except (KVStoreError, OSError, RequestError) as error:
            self._idle.tell_left_alone(session_id, error)
        return begun

    async def _delete_whole(self, threads: Executor, idle: IdleSession, owned: Owned) -> bool:
        """Deletes a session, unless something of it was pinned since it was looked at."""
        if not await _run(threads, lambda: self._idle.is_unpinned(idle)):
            return False
        await self._delete(idle.session_id, owned)
        logger.info("session deleted: all of it is too old", extra={"session": idle.session_id})
        return True


async def _run(threads: Executor, work: Callable[[], T]) -> T:
    """Returns what `work` returns, on a thread that gives way to all others."""

    def run() -> T:
        # Of this thread alone: on Linux each has its own. The disk's queue goes by it too.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        return work()

    return await asyncio.get_running_loop().run_in_executor(threads, run)
