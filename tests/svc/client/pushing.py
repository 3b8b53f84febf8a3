"""A push from its first event to its last."""

from __future__ import annotations

from svc.client import LiveSource, PushEvent, PushProgress, Source
from tests.svc.client.protocol_server import ProtocolServer, StoredSession, connected

NOTHING = PushProgress(
    received_pts_s=None,
    visible_pts_s=None,
    durable_pts_s=None,
    visible_unit_count=0,
    durable_unit_count=0,
    received_frame_count=0,
    sampled_frame_count=0,
    late_frame_count=0,
    known_frame_count=0,
    duplicate_frame_count=0,
    undecodable_packet_count=0,
    sent_item_count=0,
)


async def pushed(
    server: ProtocolServer, source: Source | LiveSource, **options: object
) -> list[PushEvent]:
    server.sessions.setdefault("s", StoredSession())
    async with connected(server) as client:
        return [event async for event in client.push("s", source, **options)]  # type: ignore[arg-type]
