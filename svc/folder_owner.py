"""Which ingest process serves a store's folder: one without a registry, several that share one.

The kernel holds the lock as long as the process lives, however it ends. What the file says of its
holder is for people; it is never taken for the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svc.config import ConfigError, Settings

logger = logging.getLogger(__name__)

LOCK_NAME = "ingest.lock"
_PASSING_S = 0.5
"""How long a lock may be held by one who only looks; see `check_free`."""
_LEAVING_S = 10.0
"""How long beyond its drain a process may take to stop."""
_POLL_S = 0.05


class FolderInUseError(ConfigError):
    """Another process has the folder, with which it cannot be shared."""


class FolderOwner:
    """A folder that this process serves, until its block is left.

    Of several that share it, none is the holder: what one of them wrote would be taken for all, and
    stay when it has left. So the file says only that it is shared.
    """

    def __init__(self, fd: int, *, shared: bool) -> None:
        """Internal: use `folder_owner`."""
        self._fd = fd
        self._shared = shared
        self._about: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
        self._write()

    def serves_at(self, address: str) -> None:
        """Lets others know where this process listens."""
        self._about["address"] = address
        self._write()

    def leaves(self) -> None:
        """Lets others know that it is stopping: one that is to take its place may wait."""
        self._about["leaving"] = True
        self._write()

    def _write(self) -> None:
        line = json.dumps({"shared": True} if self._shared else self._about) + "\n"
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, line.encode(), 0)


@contextlib.contextmanager
def folder_owner(settings: Settings) -> Iterator[FolderOwner]:
    """Holds the folder of a store for this process while the block runs.

    With a registry, which says who may write what, any number of processes hold it together.

    Raises:
        FolderInUseError: a process has it with which it cannot be shared.
        ConfigError: it cannot be locked.
    """
    fd = _open(settings, os.O_RDWR | os.O_CREAT)
    try:
        for _ in _tries(fd, settings):
            time.sleep(_POLL_S)
        yield FolderOwner(fd, shared=settings.redis_url is not None)
    finally:
        os.close(fd)


def check_free(settings: Settings) -> None:
    """Looks whether `folder_owner` would be refused; waits as it does.

    Raises:
        FolderInUseError: it would be.
        ConfigError: the folder cannot be locked.
    """
    with _looked_at(settings) as tries:
        for _ in tries:
            time.sleep(_POLL_S)


async def wait_free(settings: Settings) -> None:
    """Does what `check_free` does; others of the event loop run while it waits.

    Raises:
        FolderInUseError, ConfigError: as `check_free`.
    """
    with _looked_at(settings) as tries:
        for _ in tries:
            await asyncio.sleep(_POLL_S)


@contextlib.contextmanager
def _looked_at(settings: Settings) -> Iterator[Iterator[None]]:
    if not (settings.data_dir / LOCK_NAME).exists():
        yield iter(())
        return
    fd = _open(settings, os.O_RDONLY)
    try:
        yield _tries(fd, settings)
    finally:
        os.close(fd)


def _open(settings: Settings, flags: int) -> int:
    try:
        return os.open(settings.data_dir / LOCK_NAME, flags, 0o600)
    except OSError as error:
        raise _unusable(settings.data_dir, error) from error


def _tries(fd: int, settings: Settings) -> Iterator[None]:
    """Takes the lock, and ends when it has it; gives a pause to make after each try that failed.

    It waits for one who only looks, and for a process that is stopping.

    Raises:
        FolderInUseError: another process has it.
        ConfigError: the file system has no such locks.
    """
    begun_s, told = time.monotonic(), False
    while not _locked(fd, settings):
        about = _read(fd)
        leaving = about.get("leaving", False)
        limit_s = settings.drain_s + _LEAVING_S if leaving else _PASSING_S
        if time.monotonic() - begun_s >= limit_s:
            raise _taken(settings, about)
        if leaving and not told:
            logger.info("waiting for the process before to stop", extra={"holder": about})
            told = True
        yield


def _locked(fd: int, settings: Settings) -> bool:
    """Takes the lock if it is free; returns whether the folder may be served."""
    kind = fcntl.LOCK_EX if settings.redis_url is None else fcntl.LOCK_SH
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if settings.redis_url is None:
            raise _unusable(settings.data_dir, error) from error
        # Shared storage may know no such locks; the registry decides there in any case.
        logger.warning("the folder cannot be locked", extra={"reason": str(error)})
    return True


def _read(fd: int) -> dict[str, Any]:
    """What the file says of its holder; nothing, in the moment in which that is written."""
    try:
        about = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _taken(settings: Settings, about: dict[str, Any]) -> FolderInUseError:
    if about.get("shared", False) and settings.redis_url is None:
        return FolderInUseError(
            f"data_dir {settings.data_dir} is served already by ingest processes that share it "
            "through LOOKBACK_REDIS_URL: set the same one here, stop them, or serve another folder"
        )
    who = f" with pid {about['pid']}" if "pid" in about else ""
    if about.get("host", socket.gethostname()) != socket.gethostname():
        who += f" on {about['host']}"
    if "address" in about:
        who += f" at {about['address']}"
    if settings.redis_url is not None:
        who += ", which has no LOOKBACK_REDIS_URL"
    return FolderInUseError(
        f"data_dir {settings.data_dir} is served already by the ingest process{who}: use that one, "
        "stop it, or serve another folder. Processes that have the same LOOKBACK_REDIS_URL can "
        "share a folder"
    )


def _unusable(root: Path, error: OSError) -> ConfigError:
    return ConfigError(f"data_dir {root} cannot be locked: {error.strerror or error}")
