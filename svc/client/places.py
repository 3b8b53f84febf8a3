"""Connections to servers that other servers have named, and the rule for following them.

A server that does not have a session says where it is (SESSION_ELSEWHERE, with an `address`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from svc.client.channel import open_channel
from svc.client.errors import LookbackError

_T = TypeVar("_T")

SESSION_ELSEWHERE = "SESSION_ELSEWHERE"
MAX_HOPS = 4
"""How often one call goes on to another server before its refusal is final."""


class Places:
    """Channels by address; they stay open until the client is closed."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stack = contextlib.AsyncExitStack()

    async def channel(self, address: str) -> grpc.aio.Channel:
        """Returns the channel to `address`."""
        channel = self._channels.get(address)
        if channel is None:
            channel = await self._stack.enter_async_context(open_channel(address))
            self._channels[address] = channel
        return channel

    async def close(self) -> None:
        """Closes all."""
        self._channels.clear()
        await self._stack.aclose()


def named_address(error: LookbackError, asked: str) -> str | None:
    """Returns where the server at `asked` says that the session is; None: it names nobody else."""
    if error.reason != SESSION_ELSEWHERE:
        return None
    address = error.metadata.get("address")
    return None if address in (None, "", asked) else address


async def following(home: str, call: Callable[[str], Awaitable[_T]]) -> _T:
    """Makes a call at `home`, and where servers say that it belongs.

    Raises:
        LookbackError: what the last one said.
    """
    address = home
    for _ in range(MAX_HOPS):
        try:
            return await call(address)
        except LookbackError as error:
            named = named_address(error, address)
            if named is None:
                raise
            address = named
    return await call(address)
