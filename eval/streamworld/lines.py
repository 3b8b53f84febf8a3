"""Files of JSON lines that a run appends to and goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; a last one that was cut off is left out."""
    return [json.loads(text) for text in path.read_bytes().split(b"\n")[:-1]]


def resumed(path: Path) -> list[dict[str, Any]]:
    """Return the lines of an earlier run, and cut off what it had not finished writing."""
    if not path.exists():
        return []
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    return read_lines(path)
