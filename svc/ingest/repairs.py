"""After a start: sessions whose key index is not whole get it made anew, one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from kvstore.arena import Arena
from kvstore.errors import KVStoreError, SessionNotFoundError
from kvstore.limits import BlockLimits
from kvstore.session import session_ids
from svc.engine.index_repair import header_fault, repair_index, row_fault
from svc.ingest.ownership import Owned
from svc.ingest.pinning import spans_to_keep_of
from svc.ingest.pushes import Pushes
from svc.rpc.errors import RequestError

logger = logging.getLogger(__name__)


class IndexRepairs:
    """Looks all sessions of a store over; a push to one of them waits while it is repaired.

    First the headers, which tell at once what a crash left. Reading all rows takes long in a large
    store and seldom finds anything.
    """

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
        self.headers_whole = asyncio.Event()
        """Set once no header needs repair; the rows are still being checked."""

    async def run(self, threads: Executor) -> None:
        """Repairs what needs it; a session that cannot be repaired is logged and left."""
        names = await asyncio.get_running_loop().run_in_executor(threads, session_ids, self._root)
        sound = [name for name in names if await self._look(threads, name, header_fault)]
        self.headers_whole.set()
        for name in sound:
            await self._look(threads, name, row_fault)

    async def _look(
        self, threads: Executor, session_id: str, find: Callable[[Path, str], str | None]
    ) -> bool:
        """Repairs a session at once if it has such a fault; returns whether it was seen without."""
        loop = asyncio.get_running_loop()
        try:
            fault = await loop.run_in_executor(threads, find, self._root, session_id)
            if fault is None:
                return True
            async with self._pushes.excluded(session_id):
                owned = await self._take(session_id)
                try:
                    await loop.run_in_executor(threads, self._repair, session_id, fault, owned)
                finally:
                    await owned.release()
        except RequestError as error:
            # A push, here or in another process, has it: that makes its index whole.
            logger.info("index left alone", extra={"session": session_id, "reason": str(error)})
        except SessionNotFoundError:
            pass  # deleted meanwhile
        except (KVStoreError, OSError) as error:
            logger.error(
                "key index cannot be made whole",
                extra={"session": session_id, "reason": str(error)},
            )
        except Exception:
            logger.exception("key index cannot be looked at", extra={"session": session_id})
        return False

    def _repair(self, session_id: str, fault: str, owned: Owned) -> None:
        logger.warning("key index is not whole", extra={"session": session_id, "reason": fault})
        row_count = repair_index(
            self._root,
            session_id,
            limits=self._limits,
            shm_dir=self._shm_dir,
            arena=self._arena,
            may_commit=owned.held,
            min_epoch=owned.epoch,
            pinned=partial(spans_to_keep_of, self._root, session_id),
        )
        logger.info(
            "key index was made whole", extra={"session": session_id, "row_count": row_count}
        )
