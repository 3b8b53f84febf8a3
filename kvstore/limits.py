"""How large blocks and segment files grow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from kvstore.budget import DiskBudget
from kvstore.directio import DiskMode

_MIB = 1 << 20
_SEGMENTS_PER_BUDGET = {"drop_oldest": 16, "thin": 32}
"""A thinner copy is written beside the old segment, within the budget's reserve."""
_STEPS_PER_BUDGET = 64
_BLOCKS_PER_STEP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLimits:
    """When a block closes, how segment files are cut, and how much disk is left alone."""

    block_tokens: int = 2048
    """A block closes before the unit that would take it past this many kept tokens."""
    block_span_s: float = 8.0
    """A block closes before the unit that would stretch it past this much media time."""
    segment_bytes: int = 512 * _MIB
    """A segment file closes before the block that would take it past this size. A 7B model's blocks
    have tens of MiB: each file more is two commits of the file system more, and one more to open.
    """
    preallocate_bytes: int = 4 * _MIB
    """Disk is reserved in steps of at least this size (a full disk is met before a block is
    written)."""
    min_free_bytes: int = 256 * _MIB
    """Free bytes of the file system that a commit leaves alone."""
    budget: DiskBudget = field(default_factory=DiskBudget)
    """What the session, and the store, may take of the disk."""
    keep_tokens: int = 0
    """Newest tokens that are never dropped: what the next unit sees, after a restart too."""

    retain_s: float = 0.0
    """Older units are dropped, by both the stream's clock and the wall's; 0: none is."""
    disk_io: DiskMode = "auto"
    """Whether blocks are written past the page cache."""

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or not self.block_span_s > 0:
            raise ValueError(
                "block_tokens must be >= 1 and block_span_s > 0, got "
                f"{self.block_tokens} and {self.block_span_s}"
            )
        if min(self.segment_bytes, self.preallocate_bytes) < 4096 or self.min_free_bytes < 0:
            raise ValueError(
                "segment_bytes and preallocate_bytes must be >= 4096 and min_free_bytes >= 0, "
                f"got {self.segment_bytes}, {self.preallocate_bytes}, {self.min_free_bytes}"
            )
        if self.keep_tokens < 0 or not 0 <= self.retain_s < math.inf:
            raise ValueError(
                "keep_tokens must be >= 0 and retain_s finite and >= 0, got "
                f"{self.keep_tokens} and {self.retain_s}"
            )

    def preallocate_step_bytes(self, block_bytes: int) -> int:
        """Steps in which disk is really reserved, for blocks of this size: a few at once, as each
        step costs the file system a commit; and no large part of a small budget.
        """
        smallest_bytes = self.budget.smallest_bytes
        if not smallest_bytes:
            return max(self.preallocate_bytes, _BLOCKS_PER_STEP * block_bytes)
        return max(4096, min(self.preallocate_bytes, smallest_bytes // _STEPS_PER_BUDGET))

    @property
    def segment_stop_bytes(self) -> int:
        """Where segments really end: whole ones are dropped or thinned, so a budget has several."""
        smallest_bytes = self.budget.smallest_bytes
        count = _SEGMENTS_PER_BUDGET.get(self.budget.on_full)
        if count is None or not smallest_bytes:
            return self.segment_bytes
        return max(4096, min(self.segment_bytes, smallest_bytes // count))

    def least_budget_bytes(self, *, other_bytes: int, keep_bytes: int, block_bytes: int) -> int:
        """About the least budget under which dropping the oldest goes on: beside what cannot go
        there are the last segment and one that may go, and room for a block.

        Args:
            other_bytes: what is no segment, the key index above all.
            keep_bytes: of the newest tokens that are never dropped.
            block_bytes: what a block takes.
        """
        fixed_bytes = other_bytes + keep_bytes + block_bytes
        high = self.budget.high_fraction
        # Segments are of a block at least, and of a share of the budget where that is more.
        in_blocks = (fixed_bytes + 2 * block_bytes) / high
        share = 2 / _SEGMENTS_PER_BUDGET["drop_oldest"] + 1 / _STEPS_PER_BUDGET
        if high <= share:
            return math.ceil(in_blocks)
        return math.ceil(max(in_blocks, fixed_bytes / (high - share)))
