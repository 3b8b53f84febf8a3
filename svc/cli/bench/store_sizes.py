"""How much `lookback bench store` writes and how often it measures."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.directio import DiskMode
from svc.cli.bench.store_session import BLOCK_BYTES, UNIT_BYTES, UNITS_PER_BLOCK

SESSIONS_AT_ONCE = 8
_RESERVE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is written and how often it is measured."""

    units: int
    """Units of the session that is read, and of each append run (in whole blocks)."""
    rounds: int
    disk_io: DiskMode = "auto"
    """Of what is read. Appends are measured in both ways."""
    visible_units: int = 100

    @property
    def append_blocks(self) -> int:
        """Blocks of one append run."""
        return max(1, self.units // 2 // UNITS_PER_BLOCK)

    @property
    def session_blocks(self) -> int:
        """Blocks of each of the sessions that are written at once: some, or the first segment's
        beginning, which is there once in eleven blocks, would be half of the run."""
        return max(1, 2 * self.append_blocks // SESSIONS_AT_ONCE)

    @property
    def append_rounds(self) -> int:
        """Rounds of what writes most."""
        return min(self.rounds, 5)

    @property
    def round_bytes(self) -> int:
        """Bytes of sessions that one round of appends writes; as many lie there at most."""
        return BLOCK_BYTES * (self.append_blocks + SESSIONS_AT_ONCE * self.session_blocks)

    @property
    def written_bytes(self) -> int:
        """Bytes that the benchmark writes in all: appends in two ways beside three yardsticks."""
        return self.units * UNIT_BYTES + 5 * self.append_rounds * self.round_bytes

    @property
    def needed_bytes(self) -> int:
        """Bytes of disk that it takes at any time, and a reserve."""
        return max(self.units * UNIT_BYTES, 2 * self.round_bytes) + _RESERVE_BYTES
