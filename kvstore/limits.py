"""How large blocks and segment files grow."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLimits:
    """When a block closes, how segment files are cut, and how much disk is left alone."""

    block_tokens: int = 2048
    """A block closes before the unit that would take it past this many kept tokens."""
    block_span_s: float = 8.0
    """A block closes before the unit that would stretch it past this much media time."""
    segment_bytes: int = 64 * _MIB
    """A segment file closes before the block that would take it past this size."""
    preallocate_bytes: int = 4 * _MIB
    """Disk is reserved in steps of this size (a full disk is met before a block is written)."""
    min_free_bytes: int = 256 * _MIB
    """Free bytes of the file system that a commit leaves alone."""

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
