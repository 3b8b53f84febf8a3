"""The RAM tier as the settings and the served model want it."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from kvstore.arena import Arena
from kvstore.arenakeeper import ArenaKeeper
from kvstore.encoding import Encoding, Layout
from kvstore.geometry import Geometry
from svc.config import Settings
from svc.engine.model import LoadedModel

logger = logging.getLogger(__name__)

_TURN_S = 0.25
_FILL_BYTES_PER_S = 64 << 20
"""What is brought in of what questions read: little beside what a disk gives a question."""
_SCRUB_BYTES_PER_S = 32 << 20
"""A third of a percent of a core; 4 GiB are looked through in two minutes."""
_COLLAPSE_BYTES_PER_S = 256 << 20
_LOWEST_PRIORITY = 19
_STOP_S = 1.0


def open_arena(settings: Settings, model: LoadedModel, encoding: Encoding) -> Arena | None:
    """Returns the arena of the store, its memory allocated; None where no budget is set.

    A slot holds a full unit of one layer in `encoding`, that of new sessions. Sessions whose own is
    longer do without; the log tells when one is pushed.

    Raises:
        OSError: `shm_dir` does not exist, or has no room at all.
    """
    if settings.ram_budget_bytes == 0:
        return None
    geometry = Geometry(
        layer_count=model.layer_count,
        kv_head_count=model.kv_head_count,
        head_dim=model.head_dim,
        element=model.element,
    )
    layout = Layout(geometry, encoding)
    unit_tokens = model.adapter.tokens_per_unit
    arena = Arena.create(
        settings.data_dir,
        budget_bytes=settings.ram_budget_bytes,
        slot_bytes=layout.extent_bytes(unit_tokens),
        unit_tokens=unit_tokens,
        shm_dir=settings.shm_dir,
    )
    logger.info(
        "RAM tier opened",
        extra={
            "path": str(arena.path),
            "ram_budget_bytes": arena.budget_bytes,
            "slot_count": arena.shape.slot_count,
            "slot_bytes": arena.shape.slot_bytes,
        },
    )
    return arena


class RamKeeper:
    """Looks after the arena on a thread of the lowest priority, between `start` and `stop`."""

    def __init__(self, arena: Arena, root: Path, *, shm_dir: Path | None) -> None:
        """Nothing is done yet."""
        self._keeper = ArenaKeeper(arena, root, shm_dir=shm_dir)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ram keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a read that hangs on a failing disk is left behind."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        # Of this thread alone: on Linux each has its own. The disk's queue goes by it too.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while not self._stopping.wait(_TURN_S):
            try:
                self._keeper.look()
                self._keeper.fill(int(_FILL_BYTES_PER_S * _TURN_S))
                self._keeper.scrub(int(_SCRUB_BYTES_PER_S * _TURN_S))
                self._keeper.collapse(int(_COLLAPSE_BYTES_PER_S * _TURN_S))
            except Exception:
                logger.exception("looking after the RAM tier failed; it is tried again")
        self._keeper.close()
