"""Sessions owned by leases of the registry, and the registry filled from the files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvstore.glance import last_epoch
from svc.ingest.ownership import Naming, Owned
from svc.registry.connection import Connection
from svc.registry.errors import (
    LeaseHeldError,
    RegistryError,
    RegistryUnavailableError,
    SessionDeletedError,
    SessionElsewhereError,
)
from svc.registry.finder import Finder, Place
from svc.registry.kept import KeptLease
from svc.registry.leases import Leases
from svc.registry.presence import Presence
from svc.registry.process import ProcessInfo
from svc.registry.processes import ProcessDirectory
from svc.registry.sessions import SessionDirectory
from svc.rpc.errors import Reason, RequestError

logger = logging.getLogger(__name__)

_STEP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession:
    """What the files say of a session."""

    session_id: str
    state: Literal["live", "finished"]
    durable_unit_count: int
    durable_pts_s: float | None


class RegisteredSession:
    """A session held by a lease."""

    def __init__(self, kept: KeptLease) -> None:
        self._kept = kept
        self.epoch = kept.lease.epoch
        self.published_unit_count = kept.lease.published_unit_count
        self.lost = kept.lost
        self.held = kept.held
        self.announce = kept.announce
        self.release = kept.release

    async def deleted(self) -> None:
        """Tells the registry; see `Owned`."""
        try:
            await self._kept.delete()
        except RegistryError as error:
            logger.warning(
                "deletion not announced",
                extra={"session": self._kept.lease.session_id, "reason": str(error)},
            )


class RegisteredOwner:
    """Leases on sessions of one root; see `Ownership`."""

    def __init__(
        self,
        connection: Connection,
        process: ProcessInfo,
        root: Path,
        *,
        root_is_locked: bool,
        stored: Callable[[], Iterator[StoredSession]],
        lease_s: float,
    ) -> None:
        """`stored` looks the root over, and blocks; `root_is_locked` as in `svc.registry.kept`."""
        self._connection = connection
        self._process = process
        self._root = root
        self._root_is_locked = root_is_locked
        self._stored = stored
        self._lease_s = lease_s
        self._leases = Leases(connection, process, lease_s=lease_s)
        self._directory = SessionDirectory(connection)
        self._finder = Finder(connection, process.kind)
        self._presence = Presence(ProcessDirectory(connection), process, on_unknown=self._restore)

    async def start(self) -> None:
        """Begins to beat, and tells the registry what the files say; Redis may be away."""
        self._presence.start()

    async def stop(self) -> None:
        """Leaves the list of processes and closes the connection."""
        await self._presence.stop()
        await self._connection.close()

    async def take(self, session_id: str) -> Owned:
        """Takes the lease; waits while Redis may have forgotten an earlier one."""
        floor_epoch = await asyncio.to_thread(last_epoch, self._root, session_id)
        left_s = 2 * self._lease_s
        while True:
            try:
                kept = await KeptLease.take(
                    self._leases,
                    session_id,
                    floor_epoch=floor_epoch,
                    root_is_locked=self._root_is_locked,
                )
            except LeaseHeldError as error:
                # Under our own address it is a process that was here before us.
                known = error.address not in ("", self._process.address)
                if known or left_s <= 0:
                    raise _held(error, known=known) from error
                wait_s = min(error.wait_s + 0.01, _STEP_S)
                left_s -= wait_s
                await asyncio.sleep(wait_s)
            except SessionElsewhereError as error:
                raise await self._of_root(error) from error
            except SessionDeletedError as error:
                raise RequestError(
                    Reason.SESSION_NOT_FOUND, str(error), session_id=session_id
                ) from error
            except RegistryUnavailableError as error:
                raise _unavailable(error) from error
            else:
                return RegisteredSession(kept)

    @asynccontextmanager
    async def creating(self, session_id: str) -> AsyncIterator[Naming]:
        """Reserves the name for this root; says so when the session's folder was made."""
        try:
            await self._directory.reserve(session_id, self._process.root_id)
        except SessionElsewhereError as error:
            raise await self._of_root(error) from error
        except RegistryUnavailableError as error:
            raise _unavailable(error) from error
        naming = Naming()
        yield naming
        if not naming.made:
            return
        try:
            await self._directory.created(session_id, self._process.root_id)
        except RegistryUnavailableError as error:
            logger.warning(
                "creation not announced", extra={"session": session_id, "reason": str(error)}
            )

    async def elsewhere(self, session_id: str) -> RequestError | None:
        """Asks the registry for another root that has the session."""
        try:
            place = await self._finder.elsewhere(session_id, self._process.root_id)
        except RegistryUnavailableError as error:
            return _unavailable(error)
        return None if place is None else _elsewhere(session_id, place)

    async def _of_root(self, error: SessionElsewhereError) -> RequestError:
        try:
            place = await self._finder.serving(error.root_id)
        except RegistryUnavailableError as unavailable:
            return _unavailable(unavailable)
        return _elsewhere(error.session_id, place)

    async def _restore(self) -> None:
        """Tells a registry that does not know us what our files say."""
        stored = await asyncio.to_thread(list, self._stored())
        for session in stored:
            try:
                published = await self._directory.restore(
                    session.session_id,
                    root_id=self._process.root_id,
                    state=session.state,
                    durable_unit_count=session.durable_unit_count,
                    durable_pts_s=session.durable_pts_s,
                )
            except SessionElsewhereError as error:
                logger.error(
                    "two roots have a session of one name; this one is not served here",
                    extra={"session": session.session_id, "reason": str(error)},
                )
            except SessionDeletedError:
                continue
            else:
                if published > session.durable_unit_count:
                    logger.warning(
                        "the registry knows of more units than were on the disk just now",
                        extra={
                            "session": session.session_id,
                            "published_unit_count": published,
                            "durable_unit_count": session.durable_unit_count,
                        },
                    )


def _elsewhere(session_id: str, place: Place) -> RequestError:
    where = f"; the process at {place.address} serves it" if place.address else ""
    return RequestError(
        Reason.SESSION_ELSEWHERE,
        f"session {session_id!r} lies in root {place.root_id}{where}",
        session_id=session_id,
        root=place.root_id,
        **({"address": place.address} if place.address else {}),
    )


def _held(error: LeaseHeldError, *, known: bool) -> RequestError:
    if not known:
        return RequestError(Reason.SESSION_IN_USE, str(error), session_id=error.session_id)
    return RequestError(
        Reason.SESSION_ELSEWHERE,
        str(error),
        session_id=error.session_id,
        owner=error.owner,
        address=error.address,
        lease_left_s=round(error.wait_s, 3),
    )


def _unavailable(error: RegistryUnavailableError) -> RequestError:
    return RequestError(
        Reason.REGISTRY_UNAVAILABLE,
        f"{error}; what is being pushed goes on, and new calls wait until it is back",
    )
