"""A writer that drops the oldest of its session as it goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvstore.budget import DiskBudget
from kvstore.writer import SessionWriter
from tests.kvstore.samples import LIMITS, open_writer

_BUDGET = DiskBudget(session_bytes=600 * 1024, on_full="drop_oldest")


def dropping_writer(root: Path) -> SessionWriter:
    """An open writer that has room for about a hundred of the samples."""
    return open_writer(root, limits=replace(LIMITS, budget=_BUDGET, preallocate_bytes=4096))
