"""A camera that comes back again and again leaves nothing open in the process that answers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from retrieval.errors import EpochChangedError
from svc.engine.model import LoadedModel
from svc.qa.sessions import SessionCache
from tests.svc.qa.service import LiveSession


def open_files(name: str) -> int:
    """How often this process has a file of this name open, or mapped through a descriptor."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).startswith(name)
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def test_key_indexes_of_earlier_pushes_are_closed_once_nobody_asks(
    tmp_path: Path, model: LoadedModel
) -> None:
    live = LiveSession(tmp_path, model, f"door-{time.time_ns()}")
    cache = SessionCache(tmp_path, capacity=4)
    counts = []
    for turn in range(12):
        live.push([float(turn)])
        held = cache.lease(live.session_id)
        index = held.session.index_of(held.session.look().snapshot)
        assert index is not None
        live.close()
        live.open()
        live.push([turn + 0.5])
        lease = cache.lease(live.session_id)
        assert lease.session.index_of(lease.session.look().snapshot) is not index
        lease.release()
        with pytest.raises(EpochChangedError):
            index.check(turn)  # a question that reads it still is told, and not that it is closed
        held.release()
        counts.append(open_files("index.rows"))
        live.close()
        live.open()
    assert counts == counts[:1] * 12
    live.close()
    cache.close()
