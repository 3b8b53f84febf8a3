"""Folders in which sessions are made aside before they appear in a store, whole.

Each is locked by who makes it, so one that can be locked is what a crash left.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvstore.diskio import DiskIO, make_folders

logger = logging.getLogger(__name__)


def incoming_folder(root: Path) -> Path:
    """Where sessions lie while they are made."""
    return root / "incoming"


@contextmanager
def made_aside(root: Path) -> Iterator[Path]:
    """A new folder on the store's disk, itself laid out as a store; removed at the end."""
    make_folders(DiskIO(), incoming_folder(root))
    folder = incoming_folder(root) / uuid.uuid4().hex
    while True:
        folder.mkdir(exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if folder.exists():  # else it was swept between the two calls above
            break
        os.close(fd)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def sweep_incoming(root: Path) -> int:
    """Remove what interrupted imports left, and return how many there were. Safe at any time."""
    try:
        folders = sorted(incoming_folder(root).iterdir())
    except FileNotFoundError:
        return 0
    swept = 0
    for folder in folders:
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder)
            swept += 1
        finally:
            os.close(fd)
    if swept:
        logger.info("interrupted imports removed", extra={"swept_count": swept})
    return swept
