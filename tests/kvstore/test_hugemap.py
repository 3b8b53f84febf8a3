"""Huge pages behind a file change neither its bytes nor what it takes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from kvstore.hugemap import HUGE_PAGE_BYTES, put_huge_pages


@pytest.mark.parametrize("folder", [Path("/dev/shm"), Path(tempfile.gettempdir())])
@pytest.mark.parametrize("size", [4096, HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES + 8192])
def test_a_file_keeps_its_bytes_and_its_size(folder: Path, size: int) -> None:
    content = np.random.default_rng(0).bytes(size)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(content)
        file.flush()
        before = os.fstat(file.fileno())
        put_huge_pages(file.fileno(), size)
        after = os.fstat(file.fileno())
        assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)
        file.seek(0)
        assert file.read() == content
