"""A writer that may not commit any more leaves everything that others read as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.diskio import DiskIO
from kvstore.errors import WriterFencedError
from kvstore.glance import last_epoch
from kvstore.paths import CONTROL_NAME, session_folder
from kvstore.reader import SessionReader
from kvstore.writer import SessionWriter
from tests.kvstore.samples import SESSION, append, open_writer, sample, unit_is


class _Lease:
    """Says yes so many times, then no."""

    def __init__(self) -> None:
        self.held = True
        self.yes_count = 1_000_000

    def __call__(self) -> bool:
        self.yes_count -= 1
        return self.held and self.yes_count >= 0


def _files(root: Path) -> dict[str, bytes]:
    folder = session_folder(root, SESSION)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _a_fenced_writer_changes_nothing(root: Path) -> None:
    lease = _Lease()
    writer = open_writer(root, may_commit=lease)
    append(writer, 3)
    writer.flush()
    append(writer, 1)
    unit, keys, values = sample(4, geometry=writer.geometry)
    writer.append(unit, keys, values, resume=b"")
    before = _files(root)
    lease.held = False
    for act in (
        writer.publish,
        writer.flush,
        lambda: append(writer, 1),
        lambda: writer.set_watermarks(received_pts_s=9.0, settled_pts_s=9.0),
    ):
        with pytest.raises(WriterFencedError):
            act()
    lease.held = True
    with pytest.raises(WriterFencedError):
        writer.publish()
    writer.close()
    assert _files(root) == before


def test_a_fenced_writer_appends_publishes_and_commits_nothing_and_stays_fenced(
    root: Path,
) -> None:
    _a_fenced_writer_changes_nothing(root)


@pytest.mark.parametrize("method", ["_check_owned", "_leave_alone"])
def test_a_writer_that_does_not_ask_is_caught(
    root: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    if method == "_check_owned":
        monkeypatch.setattr(SessionWriter, method, lambda writer: None)
    else:
        original_close = SessionWriter.close

        def close(writer: SessionWriter) -> None:
            writer._fenced, writer._may_commit = False, lambda: True
            original_close(writer)

        monkeypatch.setattr(SessionWriter, "close", close)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        _a_fenced_writer_changes_nothing(root)


class _PausingDisk(DiskIO):
    """Loses the lease in the middle of a commit, as a long pause does."""

    def __init__(self, lease: _Lease) -> None:
        self.lease = lease
        self.pauses = False

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        if self.pauses:
            self.lease.held = False


def _what_was_written_over_a_pause_is_not_acknowledged(root: Path) -> None:
    lease = _Lease()
    disk = _PausingDisk(lease)
    writer = open_writer(root, may_commit=lease, io=disk)
    append(writer, 2)
    writer.flush()
    append(writer, 1)
    disk.pauses = True
    before = (session_folder(root, SESSION) / CONTROL_NAME).read_bytes()
    with pytest.raises(WriterFencedError):
        writer.flush()
    assert writer.durable_unit_count == 2
    writer.close()
    assert (session_folder(root, SESSION) / CONTROL_NAME).read_bytes() == before


def test_what_was_written_over_a_pause_is_not_acknowledged(root: Path) -> None:
    _what_was_written_over_a_pause_is_not_acknowledged(root)


def test_a_writer_that_asks_only_before_a_commit_is_caught(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SessionWriter._commit

    def commit(writer: SessionWriter) -> None:
        asked, writer._may_commit = writer._may_commit, lambda: True
        original(writer)
        writer._may_commit = asked

    monkeypatch.setattr(SessionWriter, "_commit", commit)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        _what_was_written_over_a_pause_is_not_acknowledged(root)


def test_the_next_writer_begins_at_the_epoch_of_its_lease_and_has_all_that_was_acknowledged(
    root: Path,
) -> None:
    lease = _Lease()
    writer = open_writer(root, may_commit=lease, min_epoch=7)
    assert writer.recovery.epoch == 7
    append(writer, 3)
    writer.flush()
    lease.held = False
    writer.close()
    assert last_epoch(root, SESSION) == 7
    following = open_writer(root, min_epoch=3)
    assert following.recovery.epoch == 8
    assert following.durable_unit_count == 3
    append(following, 1)
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    assert all(unit_is(reader, snapshot, index) for index in range(4))
    reader.close()
    following.close()
