"""What a soak counts as taken, and as a fault."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from eval.soak.faults import fault_count
from eval.soak.sampling import allocated_bytes, removed_bytes
from svc.logs import JsonFormatter
from tests.kvstore.samples import FAST_FOLDER

_BYTES = 1 << 20


@pytest.fixture
def shared() -> Iterator[Path]:
    with TemporaryDirectory(dir=FAST_FOLDER) as folder:
        yield Path(folder)


def test_memory_of_a_removed_file_counts_as_long_as_somebody_maps_it(shared: Path) -> None:
    path = shared / "ring.hot"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, _BYTES)
    mappings = [mmap.mmap(fd, _BYTES) for _ in range(2)]  # never touched
    os.close(fd)
    me = os.getpid()
    assert (allocated_bytes(shared), removed_bytes(shared, [me])) == (_BYTES, 0)
    path.unlink()
    assert (allocated_bytes(shared), removed_bytes(shared, [me, me])) == (0, _BYTES)
    assert removed_bytes(shared / "other", [me]) == 0
    for mapping in mappings:
        mapping.close()
    assert removed_bytes(shared, [me]) == 0


@pytest.mark.parametrize(
    ("level", "message", "is_fault"),
    [
        (logging.ERROR, "session writer failed", True),
        (logging.CRITICAL, "the model thread broke", True),
        (logging.WARNING, "unit in shared memory did not match its checksum", True),
        (logging.WARNING, "unit that left shared memory did not match its checksum", True),
        (logging.WARNING, "a damaged segment is not thinned", True),
        (logging.WARNING, "hot tail is smaller than three blocks", False),
        (logging.INFO, "RAM tier opened", False),
    ],
)
def test_faults_are_told_by_level_or_by_what_a_warning_says(
    level: int, message: str, is_fault: bool
) -> None:
    record = logging.LogRecord("kvstore", level, __file__, 1, message, (), None)
    assert fault_count([JsonFormatter("ingest").format(record)]) == is_fault
