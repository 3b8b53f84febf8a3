"""Sessions written on another machine: what becomes durable there is heard, not looked for.

On one machine the CTL page tells, at no cost, and nothing of this matters. From another machine
only the files tell, and reading them for each question is slow. What the writer's process publishes
says when to read them. While nothing is heard, questions look themselves, so nothing is missed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress

from kvstore.errors import KVStoreError
from svc.daemon_threads import DaemonThreads
from svc.qa.sessions import OpenSession, SessionCache
from svc.registry.announcements import Announcements
from svc.registry.errors import RegistryUnavailableError

logger = logging.getLogger(__name__)

TRY_AGAIN_S = 1.0
"""After Redis did not answer, or did not know the session."""


class Follower:
    """Follows the sessions that were asked about, as long as they are open. On the event loop."""

    def __init__(self, announcements: Announcements, sessions: SessionCache) -> None:
        """Nothing is followed yet."""
        self._announcements = announcements
        self._sessions = sessions
        self._threads = DaemonThreads("catch up")  # one a session; it may hang on a disk
        self._tasks: dict[OpenSession, asyncio.Task[None]] = {}

    def follow(self, session: OpenSession) -> None:
        """Begins to follow a session that is leased, unless it is followed already."""
        if session in self._tasks:
            return
        for closed in [each for each in self._tasks if each.discarded]:
            self._tasks.pop(closed).cancel()
        session.news = threading.Event()
        self._tasks[session] = asyncio.create_task(self._follow(session, session.news))

    async def stop(self) -> None:
        """Follows nothing any more."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, session: OpenSession, hears: threading.Event) -> None:
        away = False
        while not session.discarded:
            try:
                async for news in self._announcements.follow(session.session_id):
                    away = False
                    if not await self._catch_up(session, news.published_unit_count):
                        break
                    hears.set()
            except RegistryUnavailableError as error:
                if not away:
                    away = True
                    logger.warning(
                        "announcements are not heard; each question looks itself",
                        extra={"session": session.session_id, "reason": str(error)},
                    )
            except Exception:
                logger.exception(
                    "announcements cannot be followed; each question looks itself",
                    extra={"session": session.session_id},
                )
            finally:
                hears.clear()
            await asyncio.sleep(TRY_AGAIN_S)

    async def _catch_up(self, session: OpenSession, unit_count: int) -> bool:
        """Reads what was announced; False when that cannot be done now."""
        lease = self._sessions.lease_open(session)
        if lease is None:
            return False
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._threads, session.catch_up, unit_count)
        # It stays open until the thread is done, whoever waits.
        working.add_done_callback(lambda _: lease.release())
        try:
            await asyncio.shield(working)
        except (KVStoreError, OSError) as error:
            logger.info(
                "what was announced cannot be read yet",
                extra={"session": session.session_id, "reason": str(error)},
            )
            return False
        except asyncio.CancelledError:
            with suppress(Exception):
                working.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        return True
