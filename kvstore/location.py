"""Where stored bytes can be had when the store's own disk cannot give them: a seam.

Slices are read from shared memory, else from disk, else from another location. Copies of the
store's folder are one (`kvstore.copies`); a server of blocks on another host can be one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvstore.blockread import BlockPlace
from kvstore.wholesegment import WholeSegment


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceAddress:
    """Keys and values, as they are stored, of one unit in one layer of one generation."""

    session_id: str
    place: BlockPlace
    """The unit's block. The hash of its header stands for every byte of it: a block that was
    written anew has another."""
    unit_index: int
    layer: int
    offset: int
    """Where they start in the segment file, in every copy of it that has this block."""
    checksum: int
    """XXH3-64 of the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAddress:
    """A segment whose blocks the store itself may not know."""

    session_id: str
    created_unix_s: float | None
    """Of the session, as its record says; None: it has none. Another session may have had its name
    before."""
    number: int


class OtherLocation(Protocol):
    """A place that may have what a session's segment files hold. Used by many threads at once.

    What it gives is what was written, or nothing: it verifies the bytes by the address, says that
    it has none where a byte, the block's header or the session is another, and raises nothing for
    its own faults, which it logs. It may lag: newer units are simply not there. It is asked only
    when the store's disk has failed, so it may be slow, but must end. Nothing is ever written to
    it.
    """

    def slice(self, wanted: SliceAddress, out: np.ndarray[Any, Any]) -> bool:
        """Fill `out`, (bytes,) uint8, with the slice; False: it has none, and `out` is void."""
        ...

    def segment(self, wanted: SegmentAddress) -> WholeSegment | None:
        """The header and the intact blocks of a segment, as it is there; None: it has none.

        Whether they are those that are meant, and of which generation, the caller tells by their
        headers.
        """
        ...


class Nowhere:
    """No other location."""

    def slice(self, wanted: SliceAddress, out: np.ndarray[Any, Any]) -> bool:
        """It has none."""
        return False

    def segment(self, wanted: SegmentAddress) -> WholeSegment | None:
        """It has none."""
        return None


NOWHERE = Nowhere()
