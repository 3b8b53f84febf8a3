"""Following a session from afar: told within milliseconds, complete also when the stream is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from svc.registry.connection import Connection
from svc.registry.keys import events_key
from svc.registry.sessions import SessionDirectory

_WAIT_S = 1.0
_BATCH_COUNT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """How far a session has come."""

    published_unit_count: int
    durable_pts_s: float | None
    state: str
    """live, finished or deleted."""
    epoch: int


class Announcements:
    """Reads what the holders of leases publish."""

    def __init__(self, connection: Connection, *, wait_s: float = _WAIT_S) -> None:
        """`wait_s`: without news for so long, the hash is looked at."""
        self._connection = connection
        self._directory = SessionDirectory(connection)
        self._wait_s = wait_s

    async def follow(self, session_id: str) -> AsyncIterator[Announcement]:
        """Yield how far the session is, then each change; ends when it is not known or deleted.

        The count never goes down. Changes that come fast may be told as one. The stream only
        wakes the reader up: what it has lost (trimmed, or a Redis that was emptied) the hash has.

        Raises:
            RegistryUnavailableError: Redis does not answer; following again goes on from there.
        """
        told: Announcement | None = None
        while True:
            entry = await self._directory.find(session_id)
            if entry is None:
                return
            now = Announcement(
                published_unit_count=entry.published_unit_count,
                durable_pts_s=entry.durable_pts_s,
                state=entry.state,
                epoch=entry.epoch,
            )
            behind = told is not None and now.published_unit_count < told.published_unit_count
            if now != told and not behind:
                told = now
                yield now
            if entry.state == "deleted":
                return
            after = entry.last_event_id
            while events := await self._connection.read_stream(
                events_key(session_id), after=after, wait_s=self._wait_s, count=_BATCH_COUNT
            ):
                after, fields = events[-1]
                news = Announcement(
                    published_unit_count=int(fields["next"]),
                    durable_pts_s=float(fields["pts_s"]) if fields["pts_s"] else None,
                    state=fields["state"],
                    epoch=int(fields["epoch"]),
                )
                if told is None or news.published_unit_count >= told.published_unit_count:
                    told = news
                    yield news
                if news.state == "deleted":
                    return
