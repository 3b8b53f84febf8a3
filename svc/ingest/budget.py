"""What the settings say about disk, as the store takes it."""

from __future__ import annotations

from kvstore.budget import DiskBudget
from svc.config import Settings


def disk_budget(settings: Settings) -> DiskBudget:
    """Returns what sessions and the store may take of the disk."""
    return DiskBudget(
        session_bytes=settings.session_budget_bytes,
        store_bytes=settings.disk_budget_bytes,
        on_full=settings.on_full,
        high_fraction=settings.budget_high_fraction,
        low_fraction=settings.budget_low_fraction,
    )
