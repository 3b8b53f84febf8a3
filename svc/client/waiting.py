"""Waiting for something without missing the order to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def unless(
    stopping: asyncio.Event, coroutine: Coroutine[Any, Any, _Result]
) -> _Result | None:
    """Returns what the coroutine returns; cancels it and returns None once `stopping` is set."""
    work = asyncio.ensure_future(coroutine)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        stop.cancel()
        await cancelled(work)


async def cancelled(task: asyncio.Future[Any]) -> None:
    """Cancels a task and waits until it is gone; its outcome is nobody's concern any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # marks it as seen
