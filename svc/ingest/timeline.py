"""The units of a session, page by page: what is kept of each, and how much of it was new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstore.reader import SessionReader


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """What is known of one unit beside its keys and values. Media times in seconds."""

    first_pts_s: float
    last_pts_s: float
    token_count: int
    drop_fraction: float
    gap_before: bool
    coarsened: bool


def units_between(
    root: Path,
    session_id: str,
    *,
    start_s: float,
    end_s: float,
    from_unit: int,
    count: int,
) -> tuple[list[UnitFacts], int | None]:
    """Returns up to `count` visible units that end at `start_s` or later and begin before `end_s`.

    Args:
        root: of the store.
        session_id: the session.
        start_s, end_s: may be infinite.
        from_unit: units with lower indices are left out.
        count: >= 1.

    Returns:
        units: in order of time.
        next_unit: index from which to go on; None: these were all.

    Raises:
        KVStoreError: there is no such session, or it is damaged.
    """
    reader = SessionReader.open(root, session_id)
    try:
        snapshot = reader.snapshot()
    finally:
        reader.close()
    first = max(
        from_unit,
        snapshot.first_unit,
        int(np.searchsorted(snapshot.last_pts_s, start_s, side="left")),
    )
    stop = int(np.searchsorted(snapshot.first_pts_s, end_s, side="left"))
    shown = range(first, min(stop, first + count))
    units = [
        UnitFacts(
            first_pts_s=float(snapshot.first_pts_s[unit]),
            last_pts_s=float(snapshot.last_pts_s[unit]),
            token_count=int(snapshot.token_counts[unit]),
            drop_fraction=float(snapshot.drop_fractions[unit]),
            gap_before=bool(snapshot.gaps_before[unit]),
            coarsened=bool(snapshot.coarsened[unit]),
        )
        for unit in shown
    ]
    return units, shown.stop if units and shown.stop < stop else None
