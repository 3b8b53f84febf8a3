"""Reading the store through in the background, so that damage is known before a question meets it.

One thread at the lowest priority, at a limited rate. It changes nothing: what it finds is logged,
once, for whoever runs the service; `lookback store verify` names it again.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from kvstore.checking import Damage
from kvstore.scrub import Pace
from kvstore.verify import StoreCheck

logger = logging.getLogger(__name__)

_FIRST_PASS_AFTER_S = 60.0
"""The start has better things to do."""
_PASS_EVERY_S = 6 * 3600.0
"""A small store is not read over and over."""
_LOWEST_PRIORITY = 19
_STOP_S = 1.0


class _StoppedError(Exception):
    """Internal: the process is ending."""


class Scrubber:
    """Reads all sessions of a store, again and again, between `start` and `stop`."""

    def __init__(
        self,
        root: Path,
        *,
        bytes_per_s: int,
        first_pass_after_s: float = _FIRST_PASS_AFTER_S,
        pass_every_s: float = _PASS_EVERY_S,
    ) -> None:
        """Nothing is read yet.

        Args:
            root: the store's folder.
            bytes_per_s: how fast it may read; 0: it reads nothing.
            first_pass_after_s: from `start`.
            pass_every_s: from the end of one pass to the start of the next.
        """
        self._root = root
        self._bytes_per_s = bytes_per_s
        self._first_pass_after_s = first_pass_after_s
        self._pass_every_s = pass_every_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._known: set[Damage] = set()

    def start(self) -> None:
        """Begin, unless the rate is 0."""
        if self._bytes_per_s == 0:
            return
        self._thread = threading.Thread(target=self._run, name="scrubber", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a read that hangs on a failing disk is left behind."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        # Of this thread alone: on Linux each has its own. The disk's queue goes by it too.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        pause_s = self._first_pass_after_s
        while not self._stopping.wait(pause_s):
            pause_s = self._pass_every_s
            try:
                self._pass()
            except _StoppedError:
                return
            except Exception:
                logger.exception("scrubbing failed; it is tried again later")

    def _pass(self) -> None:
        pace = Pace(self._bytes_per_s, wait=self._wait)
        report = StoreCheck(self._root, progress=pace, on_damage=self._tell).run()
        self._known.intersection_update(report.damage)  # what was mended may be damaged again
        logger.info(
            "store scrubbed",
            extra={
                "session_count": report.session_count,
                "byte_count": report.byte_count,
                "damage_count": len(report.damage),
            },
        )

    def _wait(self, duration_s: float) -> None:
        if self._stopping.wait(duration_s):
            raise _StoppedError

    def _tell(self, damage: Damage) -> None:
        if damage in self._known:
            return
        self._known.add(damage)
        logger.error(
            "stored data is damaged",
            extra={
                "session": damage.session_id,
                "block": damage.block_index,
                "unit": damage.unit_index,
                "layer": damage.layer_index,
                "reason": damage.reason,
            },
        )
