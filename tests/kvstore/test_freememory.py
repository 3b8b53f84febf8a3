"""What memory may be taken: the machine's word, and the container's where that is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.freememory import free_memory_bytes

MEMINFO = "MemTotal:  2048 kB\nMemFree:  100 kB\nMemAvailable:  1024 kB\n"
KIB = 1024


@pytest.mark.parametrize(
    ("most", "taken", "free"),
    [
        (None, None, 1024 * KIB),
        ("max", 5000, 1024 * KIB),
        (str(600 * KIB), 100 * KIB, 500 * KIB),
        (str(9000 * KIB), 100 * KIB, 1024 * KIB),
        (str(100 * KIB), 101 * KIB, 0),
    ],
)
def test_the_least_of_machine_and_container_counts(
    tmp_path: Path, most: str | None, taken: int | None, free: int
) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text(MEMINFO)
    if most is not None:
        cgroup.mkdir()
        (cgroup / "memory.max").write_text(f"{most}\n")
        (cgroup / "memory.current").write_text(f"{taken}\n")
    assert free_memory_bytes(meminfo, cgroup) == free


def test_this_machine_says_how_much_it_has() -> None:
    assert free_memory_bytes() > 0
