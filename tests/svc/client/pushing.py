"""A push from its first event to its last."""

from __future__ import annotations

from svc.client import LiveSource, PushEvent, Source
from tests.svc.client.protocol_server import ProtocolServer, StoredSession, connected


async def pushed(
    server: ProtocolServer, source: Source | LiveSource, **options: object
) -> list[PushEvent]:
    server.sessions.setdefault("s", StoredSession())
    async with connected(server) as client:
        return [event async for event in client.push("s", source, **options)]  # type: ignore[arg-type]
