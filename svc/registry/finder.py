"""Where a session is that a process does not have."""

from __future__ import annotations

from dataclasses import dataclass

from svc.registry.connection import Connection
from svc.registry.process import ProcessKind
from svc.registry.processes import ProcessDirectory
from svc.registry.sessions import SessionDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Another root, and a process that serves it."""

    root_id: str
    address: str
    """Empty: no process of the kind serves the root now."""


class Finder:
    """Looks sessions up for processes of one kind."""

    def __init__(self, connection: Connection, kind: ProcessKind) -> None:
        self._directory = SessionDirectory(connection)
        self._processes = ProcessDirectory(connection)
        self._kind: ProcessKind = kind

    async def elsewhere(self, session_id: str, own_root_id: str | None) -> Place | None:
        """Return where else than in `own_root_id` the session is; None: it is not known there.

        Raises:
            RegistryUnavailableError: no answer.
        """
        entry = await self._directory.find(session_id)
        if entry is None or entry.state == "deleted" or entry.root_id == own_root_id:
            return None
        return await self.serving(entry.root_id)

    async def serving(self, root_id: str) -> Place:
        """Return a process that serves a root.

        Raises:
            RegistryUnavailableError: no answer.
        """
        serving = await self._processes.serving(root_id, self._kind)
        return Place(root_id=root_id, address=serving[0].address if serving else "")
