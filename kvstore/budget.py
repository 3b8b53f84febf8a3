"""How much disk a session, and the whole store, may take, and what happens when it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

OnFull = Literal["refuse", "drop_oldest", "thin"]
ON_FULL: tuple[OnFull, ...] = get_args(OnFull)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskBudget:
    """Limits in bytes that the file system really uses, everything in the folders included.

    New blocks stop at `high_fraction` of a budget. What lies between that and the budget is a
    reserve, which only recovery and the key index may take: a session that is full can always be
    opened, recovered and read.
    """

    session_bytes: int = 0
    """One session's folder; 0: no limit."""
    store_bytes: int = 0
    """Everything in the store's folder, all sessions together; 0: no limit."""
    on_full: OnFull = "refuse"
    """refuse: a block that does not fit is not taken. drop_oldest: the oldest go for it. thin:
    units lose tokens for it, those most like what came before first, and the length stays."""
    high_fraction: float = 0.95
    """Share of a budget that new blocks may fill."""
    low_fraction: float = 0.85
    """Share of a budget that is left filled when something has to go: not a file for every one."""

    def __post_init__(self) -> None:
        if min(self.session_bytes, self.store_bytes) < 0:
            raise ValueError(
                "session_bytes and store_bytes must be >= 0, got "
                f"{self.session_bytes} and {self.store_bytes}"
            )
        if not 0 < self.low_fraction <= self.high_fraction <= 1:
            raise ValueError(
                "fractions must be 0 < low <= high <= 1, got "
                f"{self.low_fraction} and {self.high_fraction}"
            )
        if self.on_full not in ON_FULL:
            raise ValueError(f"on_full must be one of {list(ON_FULL)}, got {self.on_full!r}")

    @property
    def smallest_bytes(self) -> int:
        """The narrower of the budgets that are set; 0 when none is."""
        return min((size for size in (self.session_bytes, self.store_bytes) if size), default=0)
