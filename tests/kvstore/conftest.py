"""Where the store's tests keep their files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvstore.samples import FAST_FOLDER


@pytest.fixture
def root() -> Iterator[Path]:
    """An empty store in memory: syncs cost nothing there, and no test here needs a real one."""
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        yield Path(folder)
