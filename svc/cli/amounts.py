"""Bytes and durations as people write them."""

from __future__ import annotations

import math
import re

from svc.amounts import MIN_SESSION_BUDGET_BYTES, parse_bytes

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])?", re.IGNORECASE)
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DEFAULT = "default"
FOREVER = "forever"
BUDGET_RULE = (
    f"at least {MIN_SESSION_BUDGET_BYTES >> 20}MiB, or `{DEFAULT}`: as the server says for all"
)


def parse_budget_bytes(text: str) -> int:
    """Returns bytes for a session's budget, as `parse_bytes` reads them; 0 for "default".

    Raises:
        ValueError: the text is no size, or less than a session needs.
    """
    if text == DEFAULT:
        return 0
    size_bytes = parse_bytes(text)
    if 0 < size_bytes < MIN_SESSION_BUDGET_BYTES:
        raise ValueError(f"{text!r} is too small: {BUDGET_RULE}")
    return size_bytes


def parse_duration_s(text: str) -> float:
    """Returns seconds for "90", "90s", "30m", "12h", "7d"; infinity for "forever"; 0: "default".

    Raises:
        ValueError: the text is none of these.
    """
    if text == DEFAULT:
        return 0.0
    if text == FOREVER:
        return math.inf
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not a duration: give seconds, or as 30m, 12h, 7d, or forever"
        )
    return float(match[1]) * _UNITS_S[match[2].lower() if match[2] else "s"]


def format_bytes(byte_count: int) -> str:
    """Returns "1,234.5 MiB"."""
    return f"{byte_count / 2**20:,.1f} MiB"


def format_duration(duration_s: float) -> str:
    """Returns "7 d", "12 h", "90 s": in the largest unit that leaves a whole number."""
    for unit in ("d", "h", "m"):
        count = duration_s / _UNITS_S[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)} {unit}"
    return f"{duration_s:g} s"
