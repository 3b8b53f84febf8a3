"""Which processes serve a root, by their heartbeats."""

from __future__ import annotations

from svc.registry import scripts
from svc.registry.connection import Connection
from svc.registry.keys import processes_key
from svc.registry.process import ProcessInfo, ProcessKind

HEARTBEAT_S = 2.0
"""How often a process says that it is there."""
GONE_AFTER_S = 10.0
"""One that has said nothing for so long is not listed."""


class ProcessDirectory:
    """The registry's processes."""

    def __init__(self, connection: Connection, *, gone_after_s: float = GONE_AFTER_S) -> None:
        self._connection = connection
        self._gone_after_s = gone_after_s

    async def beat(self, process: ProcessInfo) -> bool:
        """Say that the process is there; return whether the registry knew it already.

        It does not the first time, and when Redis has lost its memory since.

        Raises:
            RegistryUnavailableError: no answer.
        """
        reply = await self._connection.run(
            scripts.HEARTBEAT,
            keys=[processes_key(process.root_id)],
            args=[process.process_id, int(self._gone_after_s * 1000), process.to_json()],
            operation="heartbeat",
        )
        return bool(int(reply[1]))

    async def serving(self, root_id: str, kind: ProcessKind) -> list[ProcessInfo]:
        """Return the processes of a kind that serve a root, by process id.

        Raises:
            RegistryUnavailableError: no answer.
        """
        reply = await self._connection.run(
            scripts.PROCESSES, keys=[processes_key(root_id)], args=[], operation="process list"
        )
        found = [ProcessInfo.from_json(text) for text in reply[1]]
        return sorted(
            (process for process in found if process.kind == kind),
            key=lambda process: process.process_id,
        )

    async def leave(self, process: ProcessInfo) -> None:
        """Say that the process goes away.

        Raises:
            RegistryUnavailableError: no answer; it is dropped from the list by itself.
        """
        await self._connection.run(
            scripts.LEAVE,
            keys=[processes_key(process.root_id)],
            args=[process.process_id],
            operation="leaving",
        )
