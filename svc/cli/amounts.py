"""Bytes and durations as people write them."""

from __future__ import annotations

import math
import re

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])iB)?", re.IGNORECASE)
_FACTORS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])?", re.IGNORECASE)
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DEFAULT = "default"
FOREVER = "forever"


def parse_bytes(text: str) -> int:
    """Returns bytes for "1048576", "1MiB", "2.5 GiB"; 0 for "default".

    Raises:
        ValueError: the text is none of these.
    """
    if text == DEFAULT:
        return 0
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: give bytes, or as 500MiB or 2GiB")
    factor = _FACTORS[match[2].upper()] if match[2] else 1
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


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
