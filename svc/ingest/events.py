"""What a push tells its client, and how often."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeAlias

from svc.engine.ingest_session import StreamStatus
from svc.ingest.media_worker import MediaReport

PROGRESS_INTERVAL_S = 0.1
"""Progress goes out at most this often, but at once when something is urgent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a push has come."""

    media: MediaReport
    stream: StreamStatus
    credit_item_count: int
    """Items that the client may send in this call, counted from its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """The process is about to stop; the call lasts this much longer at most."""

    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Everything is durable, and the session is finished."""

    progress: Progress


Event: TypeAlias = Progress | Draining | Finished


class Pacer:
    """Wakes its one waiter when something changed: at once if urgent, else at an interval."""

    def __init__(self, interval_s: float = PROGRESS_INTERVAL_S) -> None:
        """`interval_s` is the least time between two returns of `wait` that are not urgent."""
        self._interval_s = interval_s
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()
        self._last_s = float("-inf")

    def touch(self, *, urgent: bool) -> None:
        """Says that something changed."""
        self._changed.set()
        if urgent:
            self._urgent.set()

    async def wait(self) -> None:
        """Returns when something changed since the last return; nothing is missed."""
        await self._changed.wait()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self._last_s + self._interval_s):
                await self._urgent.wait()
        except TimeoutError:
            pass
        self._changed.clear()
        self._urgent.clear()
        self._last_s = loop.time()
