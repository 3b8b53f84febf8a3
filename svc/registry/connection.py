"""The connection to Redis: every call has a timeout, and every fault of Redis one class."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from svc.registry.errors import RegistryUnavailableError

CALL_TIMEOUT_S = 1.0
"""How long Redis may take to answer; a healthy one takes under a millisecond."""


class Connection:
    """Runs scripts. For one event loop; safe to call from many tasks."""

    def __init__(self, url: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Makes a connection that is used when it is first needed.

        Args:
            url: redis://, rediss:// (TLS) or unix://; may carry a user and a password.
            timeout_s: of every call.

        Raises:
            ValueError: the URL is none.
        """
        self._timeout_s = timeout_s
        # No retries in there: whoever calls knows what a second try means. No timeout of the
        # socket: ours is of the whole call, and closes the connection so that a late reply is
        # never taken for that of the next call.
        self._redis: Redis = Redis.from_url(
            url,
            decode_responses=True,
            protocol=2,
            socket_connect_timeout=timeout_s,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            max_connections=64,
        )
        self._scripts: dict[str, Any] = {}

    async def run(
        self, script: str, *, keys: Sequence[str], args: Sequence[str | int | float], operation: str
    ) -> list[Any]:
        """Runs a script; `operation` names it in errors.

        Raises:
            RegistryUnavailableError: no answer; it may have been carried out all the same.
        """
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self._redis.register_script(script)
        try:
            async with asyncio.timeout(self._timeout_s):
                reply: list[Any] = await registered(keys=list(keys), args=list(args))
        except (RedisError, OSError) as error:
            raise _unavailable(operation, error, self._timeout_s) from error
        return reply

    async def read_stream(
        self, key: str, *, after: str, wait_s: float, count: int
    ) -> list[tuple[str, dict[str, str]]]:
        """Returns up to `count` entries behind `after`; waits up to `wait_s` for the first.

        Raises:
            RegistryUnavailableError: no answer.
        """
        limit_s = wait_s + self._timeout_s
        try:
            async with asyncio.timeout(limit_s):
                reply: Any = await self._redis.xread(
                    {key: after}, count=count, block=max(1, int(wait_s * 1000))
                )
        except (RedisError, OSError) as error:
            raise _unavailable("reading announcements", error, limit_s) from error
        return [(entry_id, fields) for entry_id, fields in reply[0][1]] if reply else []

    async def close(self) -> None:
        """Closes every connection."""
        await self._redis.aclose()


def _unavailable(operation: str, error: Exception, timeout_s: float) -> RegistryUnavailableError:
    if isinstance(error, TimeoutError):
        return RegistryUnavailableError(operation, f"nothing came within {timeout_s:g} s")
    return RegistryUnavailableError(operation, str(error) or type(error).__name__)
