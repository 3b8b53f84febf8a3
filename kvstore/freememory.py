"""How much memory may still be taken: a file system in memory promises more than there is."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """What can be taken before others are pushed out or killed, by the machine and the container.

    Args:
        meminfo: what the kernel says of the machine.
        cgroup: of the container, version 2; without limits it says "max", outside of one it has
            no such files.
    """
    free_bytes = _available_bytes(meminfo)
    try:
        most = (cgroup / "memory.max").read_text().strip()
        taken_bytes = int((cgroup / "memory.current").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return free_bytes
    if most == "max":
        return free_bytes
    return min(free_bytes, max(int(most) - taken_bytes, 0))


def _available_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise OSError(f"{meminfo} does not say how much memory is available")
