"""Waiting for a server that is there and still loads its model."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from svc.client.errors import LookbackError

_T = TypeVar("_T")

NOT_READY = "NOT_READY"
READY_WITHIN_S = 60.0
_POLL_S = 0.5


class Readiness:
    """How long the calls of a client wait for a server that is still loading."""

    def __init__(self, within_s: float, on_waiting: Callable[[str], None]) -> None:
        """`on_waiting` is told, in a sentence, when a client begins to wait for the first time."""
        if not within_s >= 0:
            raise ValueError(f"ready_within_s must be >= 0, got {within_s}")
        self.within_s = within_s
        self._on_waiting = on_waiting
        self._told = False

    async def waited(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Makes a call, again and again while the server says that it is not ready.

        Raises:
            LookbackError: what the call ended with; NOT_READY when the time is over.
        """
        begun_s = time.monotonic()
        while True:
            try:
                return await call()
            except LookbackError as error:
                await self.after(error, begun_s)

    async def after(
        self, error: LookbackError, begun_s: float, *, deadline_s: float = math.inf
    ) -> None:
        """Returns when a call that ended with `error` is to be made again.

        Args:
            error: how it ended.
            begun_s: `time.monotonic()` when it was made first.
            deadline_s: by that clock, when the call itself gives up.

        Raises:
            LookbackError: `error`, where waiting does not help, or not any more.
        """
        if error.reason != NOT_READY or self.within_s == 0:
            raise error
        now = time.monotonic()
        until_s = min(begun_s + self.within_s, deadline_s)
        if now + _POLL_S >= until_s:
            raise LookbackError(
                reason=NOT_READY,
                message=f"{error.message}, and was not ready within {now - begun_s:.0f} s",
                metadata=error.metadata,
                code=error.code,
                retry_after_s=error.retry_after_s,
            ) from error
        if not self._told:
            self._told = True
            self._on_waiting(f"{error.message}; waiting for it up to {until_s - now:.0f} s")
        await asyncio.sleep(_POLL_S)
