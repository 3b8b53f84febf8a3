"""Sizes as people write them, on the command line and in settings."""

from __future__ import annotations

import re

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])iB)?", re.IGNORECASE)
_FACTORS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

MIN_SESSION_BUDGET_BYTES = 2**20
"""A smaller one would not hold a session's first blocks and their index."""


def parse_bytes(text: str) -> int:
    """Returns bytes for "1048576", "1MiB", "2.5 GiB".

    Raises:
        ValueError: the text is none of these.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: give bytes, or as 500MiB or 2GiB")
    factor = _FACTORS[match[2].upper()] if match[2] else 1
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
