"""A conversation kept in a file: a JSON list of {"question", "answer", "evidence_until_s"}."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svc.cli.failures import CommandError

if TYPE_CHECKING:
    from svc.client import Turn


def read_history(path: Path) -> list[Turn]:
    """Returns the turns in the file, oldest first; none where there is no file yet.

    Raises:
        CommandError: HISTORY_INVALID, the file is something else.
    """
    from svc.client import Turn

    return [Turn(**turn) for turn in _turns(path)]


def append_turn(path: Path, turn: Turn) -> None:
    """Adds a turn; the file is replaced whole, and what others add to it at once is kept."""
    with _locked(path.parent):
        turns = [*_turns(path), dataclasses.asdict(turn)]
        text = json.dumps(turns, indent=1, ensure_ascii=False) + "\n"
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder against others who add turns to files in it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _turns(path: Path) -> list[dict[str, Any]]:
    try:
        turns = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise CommandError("HISTORY_INVALID", f"{path} is not JSON: {error}") from error
    if not isinstance(turns, list) or not all(map(_is_turn, turns)):
        raise CommandError(
            "HISTORY_INVALID",
            f'{path} is not a JSON list of {{"question", "answer", "evidence_until_s"}}, '
            "the last of which is a number or may be absent",
        )
    return list(turns)


def _is_turn(turn: object) -> bool:
    if not isinstance(turn, dict):
        return False
    until_s = turn.get("evidence_until_s")
    return (
        turn.keys() - {"evidence_until_s"} == {"question", "answer"}
        and isinstance(turn["question"], str)
        and isinstance(turn["answer"], str)
        and _is_unicode(turn["question"] + turn["answer"])
        and (until_s is None or _is_time(until_s))
    )


def _is_unicode(text: str) -> bool:
    """Whether it can be sent: JSON may escape halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_time(value: object) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]  # it is one of these
    except OverflowError:
        return False
