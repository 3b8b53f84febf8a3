"""A process that says, again and again, that it is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from svc.registry.errors import RegistryError, RegistryUnavailableError
from svc.registry.process import ProcessInfo
from svc.registry.processes import HEARTBEAT_S, ProcessDirectory

logger = logging.getLogger(__name__)


class Presence:
    """Beats from `start` to `stop`, through outages of Redis."""

    def __init__(
        self,
        processes: ProcessDirectory,
        process: ProcessInfo,
        *,
        on_unknown: Callable[[], Awaitable[None]],
        every_s: float = HEARTBEAT_S,
    ) -> None:
        """`on_unknown` runs whenever the registry turns out not to know the process: at the
        start, and when Redis was emptied. It is run again until it has succeeded."""
        self._processes = processes
        self._process = process
        self._on_unknown = on_unknown
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run(), name="heartbeat")

    async def stop(self) -> None:
        """Leaves; a Redis that does not answer finds out by itself."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._processes.leave(self._process)
        except RegistryUnavailableError as error:
            logger.info("registry not told of the end", extra={"reason": str(error)})

    async def _run(self) -> None:
        away, told = False, False
        while True:
            try:
                told = await self._processes.beat(self._process) and told
                if not told:
                    await self._on_unknown()
                    told = True
                if away:
                    logger.info("registry answers again")
                away = False
            except RegistryError as error:
                if not away:
                    logger.warning("registry does not answer", extra={"reason": str(error)})
                away = True
            except Exception:
                logger.exception("the registry could not be told what the store holds")
            await asyncio.sleep(self._every_s)
