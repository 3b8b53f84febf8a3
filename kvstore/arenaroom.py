"""How much of the RAM tier's budget is left for its arena: others claim and borrow from it too."""

from __future__ import annotations

import logging
from pathlib import Path

from kvstore.arenalayout import ArenaShape, largest_shape
from kvstore.diskio import DiskIO
from kvstore.errors import StoreFullError

logger = logging.getLogger(__name__)

_MARGIN_SLOTS = 8
_LARGEST_MARGIN = 32
"""Eight readers may be in the middle of a copy, but the margin is no more than a 32nd."""


class ArenaRoom:
    """The budget, and what others have of it. Whoever owns it keeps threads apart."""

    def __init__(self, folder: Path, *, budget_bytes: int, slot_bytes: int, io: DiskIO) -> None:
        """Look what there is.

        Where shared memory, or the machine, has less room than the budget, arena and hot tails
        there share what it has but for an eighth, and a warning says so.

        Args:
            folder: in shared memory.
            budget_bytes: of the arena and of what is claimed and lent, together.
            slot_bytes: of the arena.
            io: the system calls.
        """
        self._folder = folder
        self._claimed_bytes = 0
        self._lent_bytes = 0
        self.budget_bytes = budget_bytes
        """Of the arena's file, all hot tails and the key indexes in use together."""
        free_bytes = min(io.free_bytes(folder), io.free_memory_bytes())
        room_bytes = min(budget_bytes, free_bytes * 7 // 8)
        if room_bytes < budget_bytes:
            logger.warning(
                "memory has less room than the budget of the RAM tier, taking what fits",
                extra={
                    "shm_dir": str(folder),
                    "ram_budget_bytes": budget_bytes,
                    "free_bytes": free_bytes,
                    "taken_bytes": room_bytes,
                },
            )
        # Readers in the middle of a copy may take a page of what is given back.
        room_bytes -= min(_MARGIN_SLOTS * slot_bytes, room_bytes // _LARGEST_MARGIN)
        self._room_bytes = room_bytes
        self.shape: ArenaShape = largest_shape(room_bytes, slot_bytes)
        """Of an arena that has all of it."""

    def claim(self, byte_count: int) -> None:
        """Have so much less for the arena.

        Raises:
            StoreFullError: the budget does not allow it, even without a single slot.
        """
        free_bytes = self.budget_bytes - self._claimed_bytes - self._lent_bytes
        if free_bytes - byte_count < self.shape.data_start:
            raise StoreFullError(self._folder, byte_count, free_bytes, self.shape.data_start)
        self._claimed_bytes += byte_count

    def release(self, byte_count: int) -> None:
        """Have so much of what was claimed again."""
        self._claimed_bytes -= byte_count

    def lend(self, byte_count: int) -> bool:
        """Have so much lent, in all, and not what was lent before.

        Returns False when the budget is too small for it, even without a single slot.
        """
        self._lent_bytes = byte_count
        return self._claimed_bytes + byte_count + self.shape.data_start <= self.budget_bytes

    def slot_count(self) -> int:
        """How many slots the arena may have now."""
        return self.shape.fitting(self._room_bytes - self._claimed_bytes - self._lent_bytes)
