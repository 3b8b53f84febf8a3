"""Files of JSON lines that a run appends to and goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class OtherRunError(ValueError):
    """The file holds lines of a run with another plan."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; a last one that was cut off is left out."""
    return [json.loads(text) for text in path.read_bytes().split(b"\n")[:-1]]


def resumed(path: Path, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of an earlier run, and cut off what it had not finished writing.

    Args:
        path: the file, which need not be there.
        plan: what lines must agree on to be compared; every line has its own as `plan`.

    Raises:
        OtherRunError: a line has another plan; says what differs.
    """
    if not path.exists():
        return []
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    lines = read_lines(path)
    for line in lines:
        had = line.get("plan", {})
        differing = [name for name, value in plan.items() if had.get(name) != value]
        if differing:
            name = differing[0]
            raise OtherRunError(
                f"{path} holds another run: {name} {had.get(name)!r}, this one has {plan[name]!r}"
            )
    return lines
