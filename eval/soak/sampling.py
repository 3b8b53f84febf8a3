"""What the processes of a service hold while it works: memory, descriptors, threads, files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from eval.streamworld.service import OwnService, ProcessName
from svc.memory import Memory, read_memory

_BLOCK_BYTES = 512  # what st_blocks counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process at one moment."""

    pid: int
    memory: Memory
    descriptor_count: int
    thread_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A service at one moment."""

    at_s: float
    """Since the run began."""
    disk_bytes: int
    """Of the store's folder, as the file system allocated it."""
    shared_bytes: int
    """Of the service's files in shared memory, those that were removed and are still held
    included."""
    all_pushed: bool
    """Whether every stream was being pushed."""
    pushed_fraction: float
    """Of all streams together, what was visible."""
    processes: dict[ProcessName, Process]


def take_sample(
    service: OwnService,
    data: Path,
    shared: Path,
    began_s: float,
    *,
    all_pushed: bool,
    pushed_fraction: float,
) -> Sample:
    """Looks at a service.

    Args:
        service: what runs.
        data: the store's folder.
        shared: the service's folder of shared memory; nobody else's files lie there.
        began_s: when the run began, by time.monotonic.
        all_pushed: whether every stream is being pushed.
        pushed_fraction: of all streams together, what is visible.
    """
    processes: dict[ProcessName, Process] = {}
    pids = service.process_ids()
    for name, pid in pids.items():
        try:
            process = psutil.Process(pid)
            processes[name] = Process(
                pid=pid,
                memory=read_memory(pid),
                descriptor_count=process.num_fds(),
                thread_count=process.num_threads(),
            )
        except psutil.NoSuchProcess:
            continue
    return Sample(
        at_s=time.monotonic() - began_s,
        disk_bytes=allocated_bytes(data),
        shared_bytes=allocated_bytes(shared) + removed_bytes(shared, pids.values()),
        all_pushed=all_pushed,
        pushed_fraction=pushed_fraction,
        processes=processes,
    )


def allocated_bytes(folder: Path) -> int:
    """Bytes that the files below a folder take; those that vanish meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_blocks * _BLOCK_BYTES
    return total


def removed_bytes(folder: Path, pids: Iterable[int]) -> int:
    """Bytes of removed files of a folder that processes still hold, each file once.

    Whoever maps a file from Python holds a descriptor of it for as long.
    """
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it was closed
                    if os.readlink(link).startswith(f"{folder}{os.sep}"):
                        status = link.stat()
                        if status.st_nlink == 0:
                            found[status.st_ino] = status.st_blocks * _BLOCK_BYTES
    return sum(found.values())
