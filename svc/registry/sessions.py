"""Where sessions are: which root has the files, who holds the lease, how far it is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from svc.registry import scripts
from svc.registry.connection import Connection
from svc.registry.errors import SessionDeletedError, SessionElsewhereError
from svc.registry.keys import events_key, session_key
from svc.registry.leases import SessionState


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEntry:
    """What the registry knows of a session at one moment."""

    session_id: str
    root_id: str
    state: str
    """live, finished or deleted."""
    owner: str
    """Process id of the last lease's holder; empty when it was given back."""
    owner_address: str
    epoch: int
    lease_left_s: float
    """By Redis' clock; 0: nobody holds the session."""
    published_unit_count: int
    durable_pts_s: float | None
    last_event_id: str
    """The announcements behind this one are news."""


class SessionDirectory:
    """The registry's sessions."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def find(self, session_id: str) -> SessionEntry | None:
        """Return what is known of a session; None: nothing.

        Raises:
            RegistryUnavailableError: no answer.
        """
        status, *rest = await self._run(scripts.LOOKUP, session_id, [], "look-up")
        if status == "unknown":
            return None
        root_id, state, owner, address, epoch, left_ms, next_unit, pts_s, last_event_id = rest
        return SessionEntry(
            session_id=session_id,
            root_id=root_id,
            state=state,
            owner=owner,
            owner_address=address,
            epoch=int(epoch),
            lease_left_s=int(left_ms) / 1000,
            published_unit_count=int(next_unit),
            durable_pts_s=float(pts_s) if pts_s else None,
            last_event_id=last_event_id,
        )

    async def reserve(self, session_id: str, root_id: str) -> None:
        """Take a session's name for a root, before its folder is made there.

        Raises:
            SessionElsewhereError: another root has it.
            RegistryUnavailableError: no answer.
        """
        status, *rest = await self._run(scripts.RESERVE, session_id, [root_id], "reservation")
        if status == "elsewhere":
            raise SessionElsewhereError(session_id, rest[0])

    async def created(self, session_id: str, root_id: str) -> None:
        """Note that the session's folder was made just now: nobody can have a lease on it.

        Raises:
            RegistryUnavailableError: no answer; its first lease then waits for one lease time.
        """
        await self._run(scripts.CREATED, session_id, [root_id], "creation")

    async def restore(
        self,
        session_id: str,
        *,
        root_id: str,
        state: SessionState,
        durable_unit_count: int,
        durable_pts_s: float | None,
    ) -> int:
        """Tell the registry what the files say, and return how many units it holds published.

        More than the files have means that the disk has lost what was acknowledged.

        Raises:
            SessionElsewhereError: it knows the session under another root: two of one name.
            SessionDeletedError: it knows the session as deleted.
            RegistryUnavailableError: no answer.
        """
        pts_text = "" if durable_pts_s is None else repr(durable_pts_s)
        status, *rest = await self._run(
            scripts.RESTORE, session_id, [root_id, state, durable_unit_count, pts_text], "restore"
        )
        if status == "elsewhere":
            raise SessionElsewhereError(session_id, rest[0])
        if status == "deleted":
            raise SessionDeletedError(session_id)
        return int(rest[0])

    async def _run(
        self, script: str, session_id: str, args: list[str | int | float], operation: str
    ) -> list[Any]:
        keys = [session_key(session_id), events_key(session_id)]
        return await self._connection.run(
            script, keys=keys, args=args, operation=f"{operation} of session {session_id!r}"
        )
