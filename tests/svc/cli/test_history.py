"""A conversation in a file, that several commands may add to."""

from __future__ import annotations

import threading
from pathlib import Path

from svc.cli.history import append_turn, read_history
from svc.client import Turn


def test_turns_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"

    def add(name: str) -> None:
        for number in range(30):
            append_turn(path, Turn(question=f"{name}{number}", answer="yes"))

    threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = [turn.question for turn in read_history(path)]
    assert sorted(asked) == sorted(f"{name}{number}" for name in "abcd" for number in range(30))
    assert [question for question in asked if question[0] == "a"] == [f"a{n}" for n in range(30)]
    assert [each.name for each in tmp_path.iterdir()] == ["talk.json"]
