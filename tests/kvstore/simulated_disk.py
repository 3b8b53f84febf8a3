"""A disk that loses power: every change is undoable until the sync that makes it durable.

The files are real; the disk remembers what each unsynced change replaced. A power cut takes back
a random part of them, sector by sector. A process killed inside a call leaves part of it done.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvstore.diskio import Buffer, DiskIO


class ProcessKilled(BaseException):
    """The process ends inside a system call. No `except Exception` sees it."""


@dataclass(frozen=True)
class Change:
    """An unsynced change and what undoes it."""

    kind: str  # "write", "size", "create", "unlink" or "rename"
    path: Path
    offset: int = 0
    before: bytes | None = b""
    """Of a rename: what had the name, None when nothing had."""
    renamed_from: Path | None = None


class SimulatedDisk:
    """The state that survives processes: unsynced changes, oldest first."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.changes: list[Change] = []

    def synced(self, path: Path, kinds: tuple[str, ...]) -> None:
        """Forget how to undo the changes of a file (or, for entries, of a folder)."""
        self.changes = [
            change
            for change in self.changes
            if change.kind not in kinds or path not in (change.path, change.path.parent)
        ]

    def lose(self, change: Change, probability: float) -> None:
        """Undo a change, or random sectors of it."""
        if change.kind == "create":
            if self.rng.random() < probability:
                change.path.unlink(missing_ok=True)
        elif change.kind == "unlink":
            if self.rng.random() < probability and not change.path.exists():
                change.path.write_bytes(change.before or b"")
        elif change.kind == "rename":
            lost = self.rng.random() < probability and change.path.exists()
            if lost and change.renamed_from is not None:
                os.rename(change.path, change.renamed_from)
                if change.before is not None:
                    change.path.write_bytes(change.before)
        elif change.path.exists():
            self._lose_content(change, probability)

    def _lose_content(self, change: Change, probability: float) -> None:
        assert change.before is not None
        fd = os.open(change.path, os.O_RDWR)
        try:
            if change.kind == "size":
                if self.rng.random() < probability:
                    os.ftruncate(fd, change.offset)
                    os.pwrite(fd, change.before, change.offset - len(change.before))
                return
            sector = self.rng.choice((512, 4096))
            start = change.offset
            while start < change.offset + len(change.before):
                stop = min(start - start % sector + sector, change.offset + len(change.before))
                if self.rng.random() < probability:
                    old = change.before[start - change.offset : stop - change.offset]
                    os.pwrite(fd, old, start)
                start = stop
        finally:
            os.close(fd)

    def cut_power(self) -> None:
        """Lose a random part of what was not synced."""
        mode = self.rng.random()
        for change in reversed(self.changes):
            self.lose(change, 1.0 if mode < 0.2 else self.rng.random())
        self.changes = []


class SimulatedIO(DiskIO):
    """One process's calls on the disk, with the faults of that life."""

    def __init__(
        self,
        disk: SimulatedDisk,
        *,
        killed_at: int | None = None,
        sync_fails_at: int | None = None,
        full_fraction: float = 0.0,
    ) -> None:
        self.disk = disk
        self.call_count = 0
        self.killed_at = killed_at
        self._sync_fails_at = sync_fails_at
        self._full_fraction = full_fraction

    def _dies(self) -> bool:
        self.call_count += 1
        return self.call_count == self.killed_at

    def _call(self) -> None:
        if self._dies():
            raise ProcessKilled

    @staticmethod
    def _path(fd: int) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{fd}"))

    def create(self, path: Path) -> int:
        self._call()
        fd = super().create(path)
        self.disk.changes.append(Change("create", path))
        return fd

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        dies = self._dies()
        data = b"".join(bytes(buffer) for buffer in buffers)
        if dies:
            data = data[: self.disk.rng.randrange(len(data) + 1)]
        before = os.pread(fd, len(data), offset).ljust(len(data), b"\0")
        os.pwrite(fd, data, offset)
        self.disk.changes.append(Change("write", self._path(fd), offset, before))
        if dies:
            raise ProcessKilled
        return len(data)

    def begin_write_out(self, fd: int, offset: int, length: int) -> None:
        self._call()  # what is on its way may arrive, or not, as before

    def fdatasync(self, fd: int) -> None:
        self._call()
        path = self._path(fd)
        if self._sync_fails_at is not None and self.call_count >= self._sync_fails_at:
            self._sync_fails_at = None
            probability = self.disk.rng.choice((0.5, 1.0))
            for change in reversed(self.disk.changes):
                if change.path == path and change.kind == "write":
                    self.disk.lose(change, probability)
            # As Linux does it: the error is told once, the pages are gone, the next sync succeeds.
            self.disk.synced(path, ("write",))
            raise OSError(errno.EIO, "simulated sync failure")
        self.disk.synced(path, ("write", "size"))

    def fsync(self, fd: int) -> None:
        self.fdatasync(fd)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self._call()
        if self.disk.rng.random() < self._full_fraction:
            raise OSError(errno.ENOSPC, "simulated full disk")
        size = os.fstat(fd).st_size
        super().fallocate(fd, offset, length)
        self.disk.changes.append(Change("size", self._path(fd), size))

    def truncate(self, fd: int, size: int) -> None:
        self._call()
        old_size = os.fstat(fd).st_size
        before = os.pread(fd, old_size - size, size)
        super().truncate(fd, size)
        self.disk.changes.append(Change("size", self._path(fd), old_size, before))

    def unlink(self, path: Path) -> None:
        self._call()
        before = path.read_bytes()
        super().unlink(path)
        self.disk.changes.append(Change("unlink", path, 0, before))

    def rename(self, path: Path, onto: Path) -> None:
        self._call()
        before = onto.read_bytes() if onto.exists() else None
        super().rename(path, onto)
        # What was not synced of the file goes with it.
        self.disk.changes = [
            replace(change, path=onto)
            if change.path == path and change.kind in ("write", "size")
            else change
            for change in self.disk.changes
            if change.path != path or change.kind != "create"
        ]
        self.disk.changes.append(Change("rename", onto, 0, before, path))

    def fsync_folder(self, folder: Path) -> None:
        self._call()
        self.disk.synced(folder, ("create", "unlink", "rename"))
