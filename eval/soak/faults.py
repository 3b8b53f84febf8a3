"""What a service's log tells of faults."""

from __future__ import annotations

from collections.abc import Iterable

_TELLING = (
    '"ERROR"',
    '"CRITICAL"',
    # Told as warnings, since answers do without; in a run on a healthy machine they are faults.
    "did not match its checksum",
    "damaged segment",
)


def fault_count(lines: Iterable[str]) -> int:
    """Returns how many lines of a service's log tell of a fault."""
    return sum(any(words in line for words in _TELLING) for line in lines)
