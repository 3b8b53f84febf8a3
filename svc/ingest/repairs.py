"""At the start: sessions whose key index is not whole get it made anew, one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path

from kvstore.arena import Arena
from kvstore.errors import KVStoreError, SessionNotFoundError
from kvstore.limits import BlockLimits
from kvstore.session import session_ids
from svc.engine.index_repair import index_fault, repair_index
from svc.ingest.ownership import Owned
from svc.ingest.pushes import Pushes
from svc.rpc.errors import RequestError

logger = logging.getLogger(__name__)


class IndexRepairs:
    """Looks all sessions of a store over; a push to one of them waits while it is repaired."""

    def __init__(
        self,
        root: Path,
        *,
        limits: BlockLimits,
        shm_dir: Path | None,
        arena: Arena | None,
        pushes: Pushes,
        take: Callable[[str], Awaitable[Owned]],
    ) -> None:
        """`limits`, `shm_dir` and `arena` are those of the store's writers; `take` makes a session
        ours.
        """
        self._root = root
        self._limits = limits
        self._shm_dir = shm_dir
        self._arena = arena
        self._pushes = pushes
        self._take = take

    async def run(self, threads: Executor) -> None:
        """Repairs what needs it; a session that cannot be repaired is logged and left."""
        loop = asyncio.get_running_loop()
        for session_id in await loop.run_in_executor(threads, self._faulty):
            try:
                async with self._pushes.excluded(session_id):
                    owned = await self._take(session_id)
                    try:
                        await loop.run_in_executor(threads, self._repair, session_id)
                    finally:
                        await owned.release()
            except RequestError as error:
                # A push, here or in another process, has it: that makes its index whole.
                logger.info("index left alone", extra={"session": session_id, "reason": str(error)})

    def _faulty(self) -> list[str]:
        return [
            session_id
            for session_id in session_ids(self._root)
            if self._fault(session_id) is not None
        ]

    def _fault(self, session_id: str) -> str | None:
        try:
            return index_fault(self._root, session_id)
        except SessionNotFoundError:
            return None  # deleted meanwhile
        except (KVStoreError, OSError) as error:
            _log_failure(session_id, error)
            return None

    def _repair(self, session_id: str) -> None:
        fault = self._fault(session_id)
        if fault is None:
            return
        logger.warning("key index is not whole", extra={"session": session_id, "reason": fault})
        try:
            row_count = repair_index(
                self._root,
                session_id,
                limits=self._limits,
                shm_dir=self._shm_dir,
                arena=self._arena,
            )
        except SessionNotFoundError:
            return
        except (KVStoreError, OSError) as error:
            _log_failure(session_id, error)
            return
        logger.info(
            "key index was made whole", extra={"session": session_id, "row_count": row_count}
        )


def _log_failure(session_id: str, error: Exception) -> None:
    logger.error(
        "key index cannot be made whole",
        extra={"session": session_id, "reason": str(error)},
    )
