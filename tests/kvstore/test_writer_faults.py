"""Full disks, short writes, failing syncs and wrong arguments."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvstore.control import ControlPage, WriterState
from kvstore.diskio import Buffer, DiskIO, lies_in_memory
from kvstore.errors import (
    InvalidSessionIdError,
    StoreFullError,
    WriterClosedError,
    WriterFailedError,
)
from kvstore.limits import BlockLimits
from kvstore.paths import session_hash
from kvstore.reader import SessionReader
from kvstore.writer import SessionWriter
from tests.kvstore.samples import (
    FAST_FOLDER,
    LIMITS,
    SESSION,
    SMALL,
    append,
    open_writer,
    sample,
    unit_is,
)


class FaultyIO(DiskIO):
    """Fails the next call of one kind, once armed."""

    def __init__(self) -> None:
        self.armed = ""
        self.error = errno.EIO
        self.free = 1 << 40

    def _check(self, call: str) -> None:
        if self.armed == call:
            raise OSError(self.error, "injected")

    def create(self, path: Path) -> int:
        self._check("create")
        return super().create(path)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._check("pwritev")
        if self.armed == "short":
            data = b"".join(bytes(buffer) for buffer in buffers)
            return super().pwritev(fd, [data[: len(data) // 2]], offset)
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._check("fdatasync")
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._check("fsync")
        super().fsync(fd)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self._check("fallocate")
        super().fallocate(fd, offset, length)

    def fsync_folder(self, folder: Path) -> None:
        self._check("fsync_folder")
        super().fsync_folder(folder)

    def free_bytes(self, folder: Path) -> int:
        return self.free


def everything_is_there(root: Path, unit_count: int) -> bool:
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    found = snapshot.unit_count == unit_count
    right = all(unit_is(reader, snapshot, index) for index in range(snapshot.unit_count))
    reader.close()
    return found and right


@pytest.mark.parametrize(
    "fault", ["pwritev", "short", "fdatasync", "create", "fsync", "fsync_folder", "fallocate"]
)
@pytest.mark.parametrize("first_block", [True, False])
def test_after_an_io_error_the_writer_is_dead_and_the_next_one_has_all_that_was_acknowledged(
    root: Path, fault: str, first_block: bool
) -> None:
    io = FaultyIO()
    # Segments hold one block: every commit makes a file.
    limits = BlockLimits(block_tokens=10**6, block_span_s=1e9, segment_bytes=4096, min_free_bytes=0)
    writer = open_writer(root, io=io, limits=limits)
    if not first_block:
        append(writer, 3)
        writer.flush()
    append(writer, 2)
    acknowledged = writer.durable_unit_count
    io.armed = fault
    with pytest.raises(WriterFailedError):
        writer.flush()
    io.armed = ""
    calls: list[Callable[[], None]] = [
        writer.flush,
        writer.publish,
        lambda: append(writer, 1),
    ]
    for call in calls:
        with pytest.raises(WriterFailedError):
            call()
    assert writer.durable_unit_count == acknowledged
    control = ControlPage.open(root / "sessions" / SESSION, session_hash(SESSION))
    assert control is not None
    assert control.state().writer_state == WriterState.FAILED
    writer.close()
    writer = open_writer(root, limits=limits)
    assert writer.durable_unit_count >= acknowledged
    append(writer, 7 - writer.durable_unit_count)
    writer.flush()
    writer.close()
    assert everything_is_there(root, 7)


@pytest.mark.parametrize("how", ["reserve", "fallocate"])
@pytest.mark.parametrize("durable_count", [0, 4])
def test_a_full_disk_refuses_the_block_and_takes_it_once_there_is_room(
    root: Path, how: str, durable_count: int
) -> None:
    io = FaultyIO()
    limits = BlockLimits(
        block_tokens=24,
        block_span_s=1e9,
        segment_bytes=8192,
        preallocate_bytes=4096,
        min_free_bytes=1 << 20,
    )
    writer = open_writer(root, io=io, limits=limits)
    append(writer, durable_count)
    writer.flush()
    append(writer, 1)
    io.armed, io.error = ("fallocate", errno.ENOSPC) if how == "fallocate" else ("", 0)
    io.free = (1 << 20) + 4096 if how == "reserve" else io.free
    for _ in range(2):
        with pytest.raises(StoreFullError) as error:
            writer.flush()
    assert error.value.reserve_bytes == 1 << 20
    assert writer.durable_unit_count == durable_count
    with pytest.raises(StoreFullError):
        append(writer, 30)
    visible = writer.visible_unit_count
    io.armed, io.free = "", 1 << 40
    append(writer, 30)
    writer.flush()
    assert writer.durable_unit_count == visible + 30
    writer.close()
    assert everything_is_there(root, visible + 30)


def test_a_disk_that_fills_in_the_middle_of_a_write_says_full_once_and_then_dead(
    root: Path,
) -> None:
    io = FaultyIO()
    writer = open_writer(root, io=io)
    append(writer, 1)
    io.armed, io.error = "pwritev", errno.ENOSPC
    with pytest.raises(StoreFullError):
        writer.flush()
    with pytest.raises(WriterFailedError):
        writer.flush()
    writer.close()
    writer = open_writer(root)
    append(writer, 1)
    writer.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_full_file_system_loses_nothing_acknowledged(root: Path, small_disk: Path) -> None:
    writer = open_writer(small_disk, shm_dir=root, limits=LIMITS)
    with pytest.raises(StoreFullError):
        append(writer, 10_000)
    with pytest.raises(StoreFullError):
        writer.flush()
    durable = writer.durable_unit_count
    assert durable > 10
    writer.close()
    assert everything_is_there(small_disk, durable)
    writer = open_writer(small_disk, shm_dir=root, limits=LIMITS)
    assert writer.durable_unit_count == durable
    writer.close()


def test_a_store_in_memory_says_that_it_does_not_survive_a_power_loss(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (root, tmp_path):
        caplog.clear()
        open_writer(folder).close()
        warned = any("survives a power loss" in record.getMessage() for record in caplog.records)
        assert warned == lies_in_memory(folder)
    if FAST_FOLDER is not None:
        assert lies_in_memory(root)
    assert not lies_in_memory(Path("/proc"))


def test_a_block_of_more_buffers_than_one_call_takes_is_written_whole(root: Path) -> None:
    limits = BlockLimits(block_tokens=10**6, block_span_s=1e9, min_free_bytes=0)
    writer = open_writer(root, limits=limits, hot_tail_bytes=1 << 23)
    append(writer, 600)
    assert writer.durable_unit_count == 0
    writer.flush()
    writer.close()
    assert everything_is_there(root, 600)


def test_wrong_units_are_refused_and_change_nothing(root: Path) -> None:
    writer = open_writer(root)
    append(writer, 1)
    unit, keys, values = sample(1)
    wrong = [
        (sample(2)[0], keys, values),
        (sample(0)[0], keys, values),
        (unit, keys[:, :-1], values),
        (unit, keys, values.view(np.int32)),
        (unit, keys[:1], values[:1]),
    ]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"next|must be"):
            writer.append(*arguments, resume=b"")
    append(writer, 1)
    writer.flush()
    writer.close()
    assert everything_is_there(root, 2)


def test_units_must_not_go_back_in_time(root: Path) -> None:
    writer = open_writer(root)
    append(writer, 1)
    unit, keys, values = sample(1)
    early = dataclasses.replace(unit, first_pts_s=0.25)
    with pytest.raises(ValueError, match="before"):
        writer.append(early, keys, values, resume=b"")
    writer.flush()
    writer.close()
    writer = open_writer(root)
    with pytest.raises(ValueError, match="before"):
        writer.append(early, keys, values, resume=b"")
    writer.close()


def test_a_closed_writer_says_so(root: Path) -> None:
    writer = open_writer(root)
    writer.close()
    writer.close()
    for call in (writer.flush, writer.publish):
        with pytest.raises(WriterClosedError):
            call()


@pytest.mark.parametrize("session_id", ["", "A", "a/b", "..", "-a", "a-", "a" * 64, "ä", "a\n"])
def test_names_that_are_no_session_names_are_refused(root: Path, session_id: str) -> None:
    with pytest.raises(InvalidSessionIdError):
        SessionWriter.open(root, session_id, geometry=SMALL, limits=LIMITS)
    with pytest.raises(InvalidSessionIdError):
        SessionReader.open(root, session_id)
    assert list(root.iterdir()) == []
