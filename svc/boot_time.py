"""A clock that nobody sets."""

from __future__ import annotations

import time


def boot_time_s() -> float:
    """Seconds since the machine started, its sleep included; no clock setting moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
