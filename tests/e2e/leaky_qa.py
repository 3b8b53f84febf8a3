"""The QA process with the worst bug there is: it sees one unit more than was asked for."""

from __future__ import annotations

import runpy
from typing import Any

from kvstore.snapshot import Snapshot
from svc.qa import answerer
from svc.qa.as_of import Wait, cut_snapshot


def one_unit_too_late(snapshot: Snapshot, *arguments: Any, **options: Any) -> Snapshot | Wait:
    """Cuts as the real one does, then a unit further."""
    seen = cut_snapshot(snapshot, *arguments, **options)
    if isinstance(seen, Wait):
        return seen
    return snapshot.cut(min(seen.unit_count + 1, snapshot.unit_count))


if __name__ == "__main__":
    answerer.cut_snapshot = one_unit_too_late
    runpy.run_module("svc.qa", run_name="__main__")
