"""What calls change of a session: while it is this process' own, and nothing is written to it.

Where a push has the session open in this process, a change is made between two of its units; else
pushes are kept away and the session is taken from other processes first, as a push takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from kvstore.errors import SessionNotFoundError
from kvstore.pins import Span
from svc.config import Settings
from svc.ingest.keeping import KeepingRules
from svc.ingest.ownership import Owned, Ownership, while_held
from svc.ingest.pinning import Pinned, pin_span, unpin_span
from svc.ingest.pushes import Pushes
from svc.ingest.session_records import Session
from svc.ingest.sessions import Sessions
from svc.rpc.errors import Reason, RequestError

T = TypeVar("T")


class Changes:
    """Changes sessions of one store. On the event loop.

    Every method but `find` and `delete_owned` raises RequestError: SESSION_ELSEWHERE: another
    process, or another store, has the session; REGISTRY_UNAVAILABLE: nobody can say; LEASE_LOST:
    another process may have it by now.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        pushes: Pushes,
        ownership: Callable[[], Ownership],
        forget: Callable[[str], None],
    ) -> None:
        """`forget` lets go of what memory keeps of a session that was deleted; it blocks."""
        self._settings = settings
        self._sessions = sessions
        self._pushes = pushes
        self._ownership = ownership
        self._forget = forget

    async def find(self, session_id: str) -> Session:
        """Returns a session of this store.

        Raises:
            RequestError: SESSION_ELSEWHERE: it is in another store.
            KVStoreError: there is no such session, or its record is damaged.
        """
        try:
            return await asyncio.to_thread(self._sessions.get, session_id)
        except SessionNotFoundError:
            elsewhere = await self._ownership().elsewhere(session_id)
            if elsewhere is not None:
                raise elsewhere from None
            raise

    async def update(
        self,
        session_id: str,
        *,
        display_name: str | None,
        keeping: KeepingRules,
        keeping_fields: Collection[str],
    ) -> Session:
        """Changes display name and rules; see `Sessions.update`.

        Raises:
            RequestError: SESSION_IN_USE; the rules cannot be kept to.
            KVStoreError: there is none, or its record is damaged.
        """
        work = partial(
            self._sessions.update,
            session_id,
            display_name=display_name,
            keeping=keeping,
            keeping_fields=keeping_fields,
        )
        return await self._between_writes(session_id, work)

    async def pin(self, session_id: str, span: Span) -> Pinned:
        """Pins a span of a session: from when this returns, whoever drops knows of it.

        Raises:
            RequestError: SPAN_DROPPED; SESSION_IN_USE.
            KVStoreError: there is none, it is damaged, or the span cannot be pinned.
        """
        work = partial(pin_span, self._settings, self._sessions, session_id, span)
        return await self._between_writes(session_id, work)

    async def unpin(self, session_id: str, span: Span) -> Session:
        """Unpins what of a span is pinned.

        Raises:
            RequestError: SESSION_IN_USE.
            KVStoreError: there is none, it is damaged, or there is no such span.
        """
        work = partial(unpin_span, self._sessions, session_id, span)
        return await self._between_writes(session_id, work)

    async def finish(self, session_id: str) -> Session:
        """Ends the video of a live session that nobody pushes to.

        Raises:
            RequestError: SESSION_BUSY: a push is open here; SESSION_FINISHED.
            KVStoreError: there is none, or its record is damaged.
        """
        async with self._pushes.excluded(session_id):
            await self.find(session_id)
            return await self._while_own(session_id, partial(self._sessions.finish, session_id))

    async def delete(self, session_id: str) -> None:
        """Deletes a session with its memory.

        Raises:
            RequestError: SESSION_BUSY: a push is open here.
            KVStoreError: there is none, or it cannot be deleted.
        """
        async with self._pushes.excluded(session_id):
            await self.find(session_id)
            owned = await self._ownership().take(session_id)
            try:
                await self.delete_owned(session_id, owned)
            except BaseException:
                await owned.release()
                raise

    async def delete_owned(self, session_id: str, owned: Owned) -> None:
        """Deletes a session that is ours and held; the registry hears of it instead of a release.

        Raises:
            RequestError: LEASE_LOST: another process may have it by now; nothing was deleted.
            KVStoreError: it cannot be deleted.
        """
        work = partial(self._sessions.delete, session_id)
        await asyncio.to_thread(while_held, owned, session_id, work)
        await asyncio.to_thread(self._forget, session_id)
        await owned.deleted()

    async def _between_writes(self, session_id: str, work: Callable[[], T]) -> T:
        """Returns what `work` returns, which runs while nothing is written or dropped."""
        await self.find(session_id)  # a lease is of a session that is here
        while True:
            async with self._pushes.beside(session_id) as push:
                if push is None:
                    return await self._while_own(session_id, work)
                try:
                    return await push.between_units(work)
                except RequestError as error:
                    # The push ended just now, or lost it: whose it is then is asked anew.
                    if error.reason is not Reason.LEASE_LOST:
                        raise

    async def _while_own(self, session_id: str, work: Callable[[], T]) -> T:
        owned = await self._ownership().take(session_id)
        try:
            return await asyncio.to_thread(while_held, owned, session_id, work)
        finally:
            await owned.release()
