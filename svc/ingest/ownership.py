"""Whose sessions are: what a push, a change or a repair asks before it touches one.

Without a registry a process owns every session of its store (`SoleOwner`), and the kernel's lock
on a session is all there is. With one it is `svc.ingest.registered.RegisteredOwner`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal, Protocol, TypeVar

from svc.rpc.errors import Reason, RequestError

T = TypeVar("T")


class Naming:
    """A name that is held for a session; whether one was made under it."""

    def __init__(self) -> None:
        self.made = False

    def note_made(self) -> None:
        """A folder was made just now: nobody can have known the session before."""
        self.made = True


class Owned(Protocol):
    """A session that is this process' own, until `release`."""

    @property
    def epoch(self) -> int:
        """The store's next epoch is at least this one."""
        ...

    @property
    def published_unit_count(self) -> int:
        """Units that some process has said are durable."""
        ...

    @property
    def lost(self) -> asyncio.Event:
        """Set when it is no longer ours."""
        ...

    def held(self) -> bool:
        """Whether it may be written and acknowledged now; from any thread."""
        ...

    def announce(
        self,
        unit_count: int,
        pts_s: float | None,
        *,
        state: Literal["live", "finished"] | None = None,
    ) -> None:
        """Has others told that so many units are durable; on the event loop."""
        ...

    async def release(self) -> None:
        """Lets others have it; whatever fails is logged."""
        ...

    async def deleted(self) -> None:
        """Lets others know that it is gone; whatever fails is logged. Instead of `release`."""
        ...


def lost_error(session_id: str) -> RequestError:
    """Returns the refusal to go on with a session that is no longer ours."""
    return RequestError(
        Reason.LEASE_LOST,
        f"session {session_id!r} may belong to another process by now; what was "
        "acknowledged is safe",
        session_id=session_id,
    )


def while_held(owned: Owned, session_id: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns, which begins while the session is ours; from any thread.

    Raises:
        RequestError: LEASE_LOST: `work` did not begin.
        Exception: of `work`.
    """
    if not owned.held():
        raise lost_error(session_id)
    return work()


class Ownership(Protocol):
    """Decides which sessions this process may write. Used on the event loop."""

    async def take(self, session_id: str) -> Owned:
        """Makes a session of this store our own.

        Raises:
            RequestError: SESSION_ELSEWHERE, with the address of the process that has it;
                SESSION_IN_USE: who has it is not known; REGISTRY_UNAVAILABLE.
        """
        ...

    def creating(self, session_id: str) -> AbstractAsyncContextManager[Naming]:
        """Holds a name while its session is made inside the block, which notes if it was.

        Raises (on entering):
            RequestError: SESSION_ELSEWHERE or REGISTRY_UNAVAILABLE.
        """
        ...

    async def elsewhere(self, session_id: str) -> RequestError | None:
        """Returns the refusal of a session that is not in this store but in another."""
        ...

    async def start(self) -> None:
        """Begins to tell others that this process is there."""
        ...

    async def stop(self) -> None:
        """Tells others that it goes away."""
        ...


class AlwaysOwned:
    """A session where no registry is asked."""

    epoch = 0
    published_unit_count = 0

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def held(self) -> bool:
        """Always."""
        return True

    def announce(
        self,
        unit_count: int,
        pts_s: float | None,
        *,
        state: Literal["live", "finished"] | None = None,
    ) -> None:
        """Nobody to tell."""

    async def release(self) -> None:
        """Nobody waits for it."""

    async def deleted(self) -> None:
        """Nobody to tell."""


class SoleOwner:
    """Every session of the store is ours."""

    async def take(self, session_id: str) -> Owned:
        """Nobody else is asked."""
        return AlwaysOwned()

    @asynccontextmanager
    async def creating(self, session_id: str) -> AsyncIterator[Naming]:
        """Nobody else is asked."""
        yield Naming()

    async def elsewhere(self, session_id: str) -> RequestError | None:
        """Sessions are nowhere else."""
        return None

    async def start(self) -> None:
        """Nobody to tell."""

    async def stop(self) -> None:
        """Nobody to tell."""
