"""Shared memory of a push that ended is given back without a question that asks for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kvstore.session import SessionRecord, create_session
from svc.qa.sessions import SessionCache
from tests.kvstore.samples import SESSION, append, open_writer


def mapped_rings(root: Path) -> list[str]:
    """Hot tails of a store that this process maps, removed ones included."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(root) in line and ".hot" in line]


@pytest.mark.parametrize("lost_count", [0, 2])
def test_an_idle_sessions_ring_goes_with_the_next_sweep(tmp_path: Path, lost_count: int) -> None:
    create_session(
        tmp_path, SessionRecord(session_id=SESSION, created_unix_s=time.time(), unit_period_s=1.0)
    )
    writer = open_writer(tmp_path)
    append(writer, 5)
    writer.flush()
    append(writer, lost_count)
    cache = SessionCache(tmp_path, capacity=4)
    lease = cache.lease(SESSION)
    assert lease.session.look().snapshot.unit_count == 5 + lost_count
    lease.release()
    writer.close()
    assert mapped_rings(tmp_path)
    cache.sweep()
    assert mapped_rings(tmp_path) == []
    again = cache.lease(SESSION)
    assert again.session is lease.session  # it stays open
    assert again.session.look().snapshot.unit_count == 5
    again.release()
    cache.close()
