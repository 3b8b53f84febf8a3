"""Every call of a session's life fails once: an I/O error, a full disk, a short write."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

import kvstore.deletion
from kvstore.deletion import delete_session, sweep_tombstones
from kvstore.diskio import Buffer, DiskIO
from kvstore.errors import KVStoreError, StoreFullError, WriterFailedError
from kvstore.limits import BlockLimits
from kvstore.paths import session_folder
from kvstore.reader import SessionReader
from kvstore.verify import verify_store
from tests.faults.content import append_to, is_right, open_for
from tests.faults.killed import DROPPING, ONE_BLOCK_SEGMENTS
from tests.faults.ledger import Ledger, Line
from tests.kvstore.samples import FAST_FOLDER, LIMITS, SESSION
from tests.kvstore.thinning_lives import THIN_LIMITS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_FAULTS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "short": 0}


class FailsOnce(DiskIO):
    """The disk, whose so many-th call fails; a short write leaves half of what it was given."""

    def __init__(self, fault: str, fails_at: int) -> None:
        self._fault = fault
        self._left = fails_at
        self.has_failed = False

    def _call(self, *, is_write: bool = False) -> bool:
        """Fail if it is this call's turn; True where a write is to be short."""
        if self._fault == "short" and not is_write:
            return False
        self._left -= 1
        if self._left:
            return False
        self.has_failed = True
        if self._fault == "short":
            return True
        raise OSError(_FAULTS[self._fault], f"injected {self._fault}")

    def create(self, path: Path) -> int:
        self._call()
        return super().create(path)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self._call(is_write=True):
            data = b"".join(bytes(buffer) for buffer in buffers)
            return super().pwritev(fd, [data[: len(data) // 2]], offset)
        return super().pwritev(fd, buffers, offset)

    def begin_write_out(self, fd: int, offset: int, length: int) -> None:
        self._call()
        super().begin_write_out(fd, offset, length)

    def fdatasync(self, fd: int) -> None:
        self._call()
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._call()
        super().fsync(fd)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self._call()
        super().fallocate(fd, offset, length)

    def truncate(self, fd: int, size: int) -> None:
        self._call()
        super().truncate(fd, size)

    def unlink(self, path: Path) -> None:
        self._call()
        super().unlink(path)

    def rename(self, path: Path, onto: Path) -> None:
        self._call()
        super().rename(path, onto)

    def fsync_folder(self, folder: Path) -> None:
        self._call()
        super().fsync_folder(folder)


def _write_on(root: Path, limits: BlockLimits, io: DiskIO, unit_count: int) -> int:
    """Open, append and close as far as the disk lets it; return what was acknowledged."""
    writer = None
    try:
        writer = open_for(root, limits, io=io)
        while writer.visible_unit_count < unit_count:
            append_to(writer, 1)
            if writer.visible_unit_count % 5 == 0:
                writer.flush()
    except (StoreFullError, WriterFailedError, OSError):
        pass
    if writer is None:
        return 0
    acknowledged = writer.durable_unit_count
    with suppress(KVStoreError, OSError):
        writer.close()
    return max(acknowledged, writer.durable_unit_count)


def _check(root: Path, limits: BlockLimits, acknowledged: int, line: Line) -> None:
    writer = open_for(root, limits)
    assert writer.durable_unit_count >= acknowledged, "an acknowledged unit was lost"
    append_to(writer, 3)
    writer.flush()
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    for index in range(snapshot.first_unit, snapshot.unit_count):
        assert is_right(reader, snapshot, index)
        line.checked_count += 1
    reader.close()
    writer.close()
    assert verify_store(root).damage == ()


@pytest.mark.parametrize("fault", _FAULTS)
@pytest.mark.parametrize(
    ("what", "limits", "before_count", "unit_count"),
    [
        ("plain", LIMITS, 0, 30),
        ("in pieces", LIMITS, 0, 30),
        ("rotating", ONE_BLOCK_SEGMENTS, 0, 12),
        ("recovery and dropping", DROPPING, 90, 130),
        ("recovery and thinning", THIN_LIMITS, 14, 20),
    ],
)
def test_no_failing_call_of_a_writer_costs_an_acknowledged_unit(
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    what: str,
    limits: BlockLimits,
    before_count: int,
    unit_count: int,
) -> None:
    if what == "in pieces":
        monkeypatch.setattr("kvstore.diskio._PIECE_BYTES", 4096)
    with (
        ledger.line(f"{fault} at every call of a writer ({what})") as line,
        tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder,
    ):
        before = Path(folder) / "before"
        at_first = _write_on(before, limits, DiskIO(), before_count)
        for fails_at in range(1, 2000):
            root = Path(folder) / f"{fails_at}"
            shutil.copytree(before, root)
            io = FailsOnce(fault, fails_at)
            acknowledged = max(at_first, _write_on(root, limits, io, unit_count))
            _check(root, limits, acknowledged, line)
            shutil.rmtree(root)
            if not io.has_failed:
                break
            line.fault_count += 1
            line.acknowledged_count += acknowledged
        else:
            pytest.fail("it takes more calls than were tried")
        assert line.fault_count > 3


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC"])
def test_a_deletion_whose_call_fails_leaves_the_session_whole_or_is_finished(
    ledger: Ledger, root: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.line(f"{fault} at every call of a deletion") as line:
        for fails_at in range(1, 50):
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            unit_count = _write_on(root, LIMITS, DiskIO(), 20)
            io = FailsOnce(fault, fails_at)
            with monkeypatch.context() as failing:
                failing.setattr(kvstore.deletion, "DiskIO", lambda io=io: io)
                try:
                    delete_session(root, SESSION)
                except OSError:
                    assert io.has_failed
            if not io.has_failed:
                break
            line.fault_count += 1
            sweep_tombstones(root)
            if session_folder(root, SESSION).is_dir():
                _check(root, LIMITS, unit_count, line)
            assert not list((root / "trash").glob("*"))
        assert line.fault_count >= 3
