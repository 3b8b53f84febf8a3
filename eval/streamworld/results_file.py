"""The results of a benchmark run: one JSON object a line, appended to, never changed.

A row of "row": "answer" is one question put in one way; one of "row": "stream" is one stream as it
was stored. Both name their plan ("plan") and themselves ("key").
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class ResultsError(Exception):
    """The file holds what this run cannot go on from."""


class ResultsFile:
    """The rows of one plan, and room for more; use in a `with` block to append."""

    def __init__(self, path: Path, plan_digest: str) -> None:
        """Read the rows of one plan; a line that was cut short is dropped from the file.

        Raises:
            ResultsError: A whole line of the file is no row.
        """
        self._plan_digest = plan_digest
        self._path = path
        self.rows: list[Row] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._file.seek(0)
        for number, line in enumerate(self._file.read().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                self._file.truncate(self._file.seek(0, 2) - len(line))
                break
            try:
                row = json.loads(line)
                mine = row["plan"] == plan_digest
            except (ValueError, KeyError, TypeError) as error:
                raise ResultsError(f"{path}:{number} is no row of results") from error
            if mine:
                self.rows.append(row)
        self._done = {self._name(row) for row in self.rows}

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, row: str, key: tuple[object, ...]) -> bool:
        """Whether there is such a row."""
        return (row, *key) in self._done

    def append(self, row: Row) -> None:
        """Writes a row through to the file; one that is there already stays as it is."""
        row = {"plan": self._plan_digest, **row}
        if self._name(row) not in self._done:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            self.rows.append(row)
            self._done.add(self._name(row))

    @staticmethod
    def _name(row: Row) -> tuple[object, ...]:
        return (row["row"], *row["key"])
