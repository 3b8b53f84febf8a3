"""The store's folder, before anything is in it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from svc.config import ConfigError


def make_data_dir(root: Path) -> Path:
    """Makes the folder if it is not there; said now, rather than by every session that cannot be.

    Raises:
        ConfigError: it cannot be made, or nothing can be written there.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"data_dir {root} cannot be used: {why}") from error
    return root
