"""Reading a store at a limited rate, so that damage is found before it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable

_MAX_BURST_S = 1.0


class Pace:
    """Holds a reader back to a rate. What a slow disk falls behind is not made up in a burst."""

    def __init__(
        self,
        bytes_per_s: float,
        *,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start now.

        Args:
            bytes_per_s: the rate, > 0.
            wait: called with seconds; it may raise to stop the reader.
        """
        if not bytes_per_s > 0:
            raise ValueError(f"bytes_per_s must be > 0, got {bytes_per_s}")
        self._bytes_per_s = bytes_per_s
        self._wait = wait
        self._clock = clock
        self._due_s = clock()
        self._done_bytes = 0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Wait until `done_bytes` may have been read; the shape of `verify.Progress`."""
        now_s = self._clock()
        self._due_s = max(self._due_s, now_s - _MAX_BURST_S)
        self._due_s += (done_bytes - self._done_bytes) / self._bytes_per_s
        self._done_bytes = done_bytes
        if self._due_s > now_s:
            self._wait(self._due_s - now_s)
