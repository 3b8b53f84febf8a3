"""The moment after which a question is given up, whatever it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from svc.rpc.errors import Reason, RequestError

T = TypeVar("T")


class Deadline:
    """A moment after which a question is given up."""

    def __init__(self, at_s: float) -> None:
        """`at_s` is by time.perf_counter."""
        self.at_s = at_s

    async def keep(self, waiting: Awaitable[T]) -> T:
        """Returns what is waited for.

        Raises:
            RequestError: QUESTION_TIMED_OUT; the deadline passed first.
        """
        try:
            # Not wait_for: before Python 3.12 it forgets a cancellation that comes with the result.
            async with asyncio.timeout(self.at_s - time.perf_counter()):
                return await waiting
        except TimeoutError as error:
            raise RequestError(
                Reason.QUESTION_TIMED_OUT, "the deadline passed before the answer was complete"
            ) from error
