"""A conversation kept in a file: a JSON list of {"question", "answer"}."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from svc.cli.failures import CommandError

if TYPE_CHECKING:
    from svc.client import Turn


def read_history(path: Path) -> list[Turn]:
    """Returns the turns in the file, oldest first; none where there is no file yet.

    Raises:
        CommandError: HISTORY_INVALID, the file is something else.
    """
    from svc.client import Turn

    return [Turn(question=turn["question"], answer=turn["answer"]) for turn in _turns(path)]


def append_turn(path: Path, question: str, answer: str) -> None:
    """Adds a turn; the file is replaced whole."""
    turns = [*_turns(path), {"question": question, "answer": answer}]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(turns, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _turns(path: Path) -> list[dict[str, str]]:
    try:
        turns = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CommandError("HISTORY_INVALID", f"{path} is not JSON: {error}") from error
    fits = isinstance(turns, list) and all(
        isinstance(turn, dict)
        and turn.keys() == {"question", "answer"}
        and all(isinstance(text, str) for text in turn.values())
        for turn in turns
    )
    if not fits:
        raise CommandError(
            "HISTORY_INVALID", f'{path} is not a JSON list of {{"question", "answer"}}'
        )
    return list(turns)
