"""How many files a process may hold open."""

from __future__ import annotations

import resource


def allow_open_files() -> None:
    """Raise the process's own limit as far as it may: every open session maps files of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
