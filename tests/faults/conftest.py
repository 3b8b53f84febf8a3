"""The ledger of a run, and its table at the end; where the faults happen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.ledger import Ledger, table
from tests.kvstore.samples import FAST_FOLDER

_LEDGER = pytest.StashKey[Ledger]()


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """The ledger of this run."""
    return request.config.stash.setdefault(_LEDGER, Ledger())


@pytest.fixture
def root() -> Iterator[Path]:
    """An empty store in memory."""
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        yield Path(folder)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table."""
    ledger = config.stash.get(_LEDGER, Ledger())
    if ledger.lines:
        terminalreporter.section("faults")
        for row in table(ledger.lines):
            terminalreporter.write_line(row)
