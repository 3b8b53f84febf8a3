"""A deleted session's space is really free once the questions that read it are done."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore.deletion import delete_session
from kvstore.errors import SessionNotFoundError
from kvstore.session import SessionRecord, create_session
from retrieval.index_writer import KeyIndexWriter
from svc.engine.key_rows import key_index_path
from svc.qa.sessions import SessionCache
from tests.kvstore.samples import SESSION, SMALL, append, open_writer, unit_is

_UNIT_COUNT = 60
_PAGES_OF_FOLDERS = 64 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, so that nobody else's files move its free bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def held(folder: Path) -> set[str]:
    """Deleted files below a folder that this process keeps alive, open or mapped."""
    descriptors = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    names = [os.readlink(path) for path in descriptors]
    maps = Path("/proc/self/maps").read_text().splitlines()
    names += [line.split(maxsplit=5)[-1] for line in maps]
    return {name for name in names if name.startswith(str(folder)) and name.endswith("(deleted)")}


def make_session(root: Path) -> None:
    record = SessionRecord(session_id=SESSION, created_unix_s=time.time(), unit_period_s=1.0)
    create_session(root, record)
    writer = open_writer(root)
    append(writer, _UNIT_COUNT)
    writer.flush()
    rows = KeyIndexWriter.create(
        key_index_path(root, SESSION),
        layer_count=SMALL.layer_count,
        dim=SMALL.kv_head_count * SMALL.head_dim,
        epoch=writer.recovery.epoch,
    )
    for _ in range(_UNIT_COUNT):
        rows.append(np.ones((SMALL.layer_count, SMALL.kv_head_count * SMALL.head_dim), np.float32))
    rows.close()
    writer.close()


@pytest.mark.parametrize("deleted_while", ["idle", "answering"])
def test_a_deleted_sessions_space_is_free_once_nobody_reads_it(
    disk: Path, deleted_while: str
) -> None:
    free_before = free_bytes(disk)
    make_session(disk)
    taken = free_before - free_bytes(disk)
    assert taken > 500_000
    cache = SessionCache(disk, capacity=4)
    lease = cache.lease(SESSION)
    look = lease.session.look()
    reader, snapshot = lease.session.reader, look.snapshot
    index = lease.session.index_of(snapshot)
    assert index is not None
    assert unit_is(reader, snapshot, 0)
    query = np.ones(index.dim, np.float32)
    expected = index.scores(0, query, _UNIT_COUNT)
    if deleted_while == "idle":
        lease.release()
    del look
    delete_session(disk, SESSION)
    assert held(disk)  # the test sees what it looks for
    if deleted_while == "answering":
        # What was open is read to its end, and is what was written.
        assert all(unit_is(reader, snapshot, unit) for unit in range(_UNIT_COUNT))
        np.testing.assert_array_equal(index.scores(0, query, _UNIT_COUNT), expected)
        cache.sweep()  # not yet: it is read
        assert held(disk)
        lease.release()
    cache.sweep()
    del reader, snapshot, index, lease
    assert held(disk) == set()
    assert free_bytes(disk) >= free_before - _PAGES_OF_FOLDERS
    with pytest.raises(SessionNotFoundError):
        cache.lease(SESSION)
    cache.close()


def test_a_session_made_anew_under_the_name_lets_the_old_one_go(disk: Path) -> None:
    make_session(disk)
    cache = SessionCache(disk, capacity=4)
    lease = cache.lease(SESSION)
    snapshot = lease.session.look().snapshot
    assert unit_is(lease.session.reader, snapshot, 0)
    lease.release()
    delete_session(disk, SESSION)
    make_session(disk)
    again = cache.lease(SESSION)
    del lease, snapshot
    assert held(disk) == set()
    assert unit_is(again.session.reader, again.session.look().snapshot, 0)
    again.release()
    cache.close()
