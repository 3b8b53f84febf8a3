"""Times in a video as people write them."""

from __future__ import annotations

import math
import re

_CLOCK = re.compile(r"(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d{1,2}(?:\.\d+)?)")
_FORMS = "give seconds, mm:ss or h:mm:ss, as 75.5, 1:15.5 or 0:01:15.5"


def parse_time_s(text: str) -> float:
    """Returns seconds for "75.5", "1:15.5" or "0:01:15.5"; without hours, minutes are any number.

    Raises:
        ValueError: the text is none of these.
    """
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    match = _CLOCK.fullmatch(digits)
    if match is not None:
        hours, minutes, seconds = int(match["h"] or 0), int(match["m"]), float(match["s"])
        if seconds >= 60 or (match["h"] and minutes >= 60):
            raise ValueError(f"{text!r} is not a time: what follows a colon is below 60")
        return sign * (hours * 3600 + minutes * 60 + seconds)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a time: {_FORMS}")
    return value


def format_time(time_s: float) -> str:
    """Returns "1:15.5" for 75.5, "1:02:03.0" for 3723."""
    sign = "-" if time_s < 0 else ""
    tenths = round(abs(time_s) * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{sign}{hours}:{minutes:02d}:{seconds}" if hours else f"{sign}{minutes}:{seconds}"
