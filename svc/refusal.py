"""How a process of the service says that it cannot start: to people, or to the one that runs it."""

from __future__ import annotations

import json
import sys

UNDER_SUPERVISOR = "--under-supervisor"
"""Argument of a process whose supervisor listens to its standard output."""


def tell_refusal(process: str, error: Exception) -> None:
    """Says why `process` cannot start.

    Two processes that cannot load the same model would say the same to people: their supervisor
    is told instead, and says it once.
    """
    if UNDER_SUPERVISOR in sys.argv[1:]:
        event = {"event": "refused", "process": process, "reason": str(error)}
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    else:
        sys.stderr.write(f"lookback {process} cannot start: {error}\n")
