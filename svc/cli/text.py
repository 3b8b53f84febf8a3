"""Text of others on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns the text without control characters, which could command the terminal."""
    return "".join(each for each in text if each in "\n\t" or each.isprintable())
