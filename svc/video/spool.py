"""Where an MP4 with its index behind its data lies on disk until it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from svc.video.errors import SpoolFullError

_PREFIX = "lookback-spool-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """A folder for spooled files, and how much of its disk is left alone."""

    folder: Path | None = None
    """Must exist; absent: the system's folder for temporary files."""
    min_free_bytes: int = 0

    def clean(self) -> None:
        """Make the folder, and remove what a crash may have left in it."""
        if self.folder is None:
            return
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.glob(f"{_PREFIX}*"):
            path.unlink(missing_ok=True)

    def open(self) -> IO[bytes]:
        """Open an empty file that has no name, and is gone when it is closed."""
        return tempfile.TemporaryFile(prefix=_PREFIX, dir=self.folder)

    def write(self, file: IO[bytes], data: bytes) -> None:
        """Append to a file of this spool.

        Raises:
            SpoolFullError: it would take from what is to be left free.
        """
        folder = self.folder or Path(tempfile.gettempdir())
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes - len(data) < self.min_free_bytes:
            raise SpoolFullError(
                folder=os.fspath(folder),
                free_bytes=free_bytes,
                reserve_bytes=self.min_free_bytes,
            )
        file.write(data)
