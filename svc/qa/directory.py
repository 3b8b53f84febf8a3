"""Other QA processes: who has a session that is not in this one's store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from svc.config import ConfigError, Settings
from svc.qa.following import Follower
from svc.qa.sessions import SessionCache
from svc.registry.announcements import Announcements
from svc.registry.connection import Connection
from svc.registry.errors import RegistryUnavailableError
from svc.registry.finder import Finder
from svc.registry.presence import Presence
from svc.registry.process import this_process
from svc.registry.processes import HEARTBEAT_S, ProcessDirectory
from svc.registry.root import RootIdDamagedError, read_root_id
from svc.rpc.errors import Reason, RequestError
from svc.rpc.server import Address

logger = logging.getLogger(__name__)


class Directory(Protocol):
    """Knows where sessions are; used on the event loop."""

    async def elsewhere(self, session_id: str) -> RequestError | None:
        """Returns the refusal of a session that is in another store; None: it is in none."""
        ...

    def start(self, address: Address) -> None:
        """Begins to tell others that this process answers at `address`."""
        ...

    def follower(self, sessions: SessionCache) -> Follower | None:
        """Returns what hears of units that others make durable; None: all are made here."""
        ...

    async def stop(self) -> None:
        """Tells others that it goes away."""
        ...


class NoDirectory:
    """There is no other store."""

    async def elsewhere(self, session_id: str) -> RequestError | None:
        """Sessions are nowhere else."""
        return None

    def start(self, address: Address) -> None:
        """Nobody to tell."""

    def follower(self, sessions: SessionCache) -> Follower | None:
        """Nobody to hear from."""
        return None

    async def stop(self) -> None:
        """Nobody to tell."""


class RegistryDirectory:
    """Asks the registry. Writes nothing into the store: the ingest process gives it its name."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._finder = Finder(connection, "qa")
        self._presence: Presence | None = None
        self._starting: asyncio.Task[None] | None = None

    async def elsewhere(self, session_id: str) -> RequestError | None:
        """See `Directory`; REGISTRY_UNAVAILABLE when Redis does not answer."""
        try:
            place = await self._finder.elsewhere(session_id, self._root_id())
        except RegistryUnavailableError as error:
            return RequestError(
                Reason.REGISTRY_UNAVAILABLE,
                f"session {session_id!r} is not here, and {error}",
                session_id=session_id,
            )
        if place is None:
            return None
        where = f"; the process at {place.address} answers for it" if place.address else ""
        return RequestError(
            Reason.SESSION_ELSEWHERE,
            f"session {session_id!r} lies in root {place.root_id}{where}",
            session_id=session_id,
            root=place.root_id,
            **({"address": place.address} if place.address else {}),
        )

    def start(self, address: Address) -> None:
        """Begins once the root has a name."""
        self._starting = asyncio.create_task(self._begin(address))

    def follower(self, sessions: SessionCache) -> Follower | None:
        """Hears what the holders of leases publish."""
        return Follower(Announcements(self._connection), sessions)

    async def stop(self) -> None:
        """Leaves the list of processes and closes the connection."""
        if self._starting is not None:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        if self._presence is not None:
            await self._presence.stop()
        await self._connection.close()

    async def _begin(self, address: Address) -> None:
        while (root_id := self._root_id()) is None:  # noqa: ASYNC110 - a file of another process
            await asyncio.sleep(HEARTBEAT_S)
        process = this_process(
            "qa", root_id=root_id, address=self._settings.advertised(address.host, address.port)
        )
        self._presence = Presence(
            ProcessDirectory(self._connection), process, on_unknown=_nothing_to_restore
        )
        self._presence.start()

    def _root_id(self) -> str | None:
        try:
            return read_root_id(self._settings.data_dir)
        except RootIdDamagedError as error:
            logger.error("the root has no name", extra={"reason": str(error)})
            return None


async def _nothing_to_restore() -> None:
    """Readers have nothing to tell of sessions."""


def open_directory(settings: Settings) -> Directory:
    """Returns what the settings ask for; it touches the registry when it is needed.

    Raises:
        ConfigError: the registry's address is none.
    """
    if settings.redis_url is None:
        return NoDirectory()
    try:
        return RegistryDirectory(settings, Connection(settings.redis_url))
    except ValueError as error:
        raise ConfigError(f"redis_url is none: {error}") from error
