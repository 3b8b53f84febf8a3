"""Blocks written and slices read past the page cache are the same blocks and slices."""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore import directio
from kvstore.aligned import KVMemory, aligned_empty
from kvstore.directio import appends_direct, in_page_cache, read_direct, reads_direct, write_direct
from kvstore.diskio import Buffer, DiskIO, file_system_of
from kvstore.errors import SliceCorruptError, WriterFailedError
from kvstore.paths import segment_numbers, segment_path, session_folder
from kvstore.reader import SessionReader
from kvstore.readonce import LEAST_BYTES, ReadOnce
from kvstore.segmentfiles import SegmentFiles
from kvstore.verify import verify_store
from tests.kvstore.crash_lives import PLAIN_LIMITS, PromiseBrokenError, live_and_die
from tests.kvstore.samples import LIMITS, SESSION, append, open_writer, read_unit, unit_is
from tests.kvstore.simulated_disk import SimulatedDisk, SimulatedIO

DIRECT = replace(LIMITS, disk_io="direct")
PAGE = 4096


@pytest.fixture
def direct_root(tmp_path: Path) -> Path:
    if not reads_direct("direct", tmp_path):
        pytest.skip(f"{tmp_path} lies on {file_system_of(tmp_path)}, which takes no direct I/O")
    return tmp_path


@pytest.fixture
def small_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and slices are larger than what is written or read at once."""
    monkeypatch.setattr(directio, "_SCRATCH_BYTES", 2 * PAGE)
    monkeypatch.setattr(directio, "_scratch", directio._Scratch())


class _Aligned(DiskIO):
    """A disk for direct writes only, as strict as one can be; or one that refuses them."""

    def __init__(self, refused_at: str = "", code: int = errno.EINVAL) -> None:
        self.direct: dict[int, bool] = {}
        self.direct_writes = self.buffered_writes = 0
        self._refused_at = refused_at
        self._code = code

    def file_system(self, folder: Path) -> str:
        return "ext4"

    def set_direct(self, fd: int, *, direct: bool) -> None:
        if direct and self._refused_at == "set":
            raise OSError(self._code, "injected")
        self.direct[fd] = direct

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if not self.direct.get(fd):
            self.buffered_writes += 1
            return super().pwritev(fd, buffers, offset)
        self.direct_writes += 1
        if self._refused_at == f"write {self.direct_writes}":
            raise OSError(self._code, "injected")
        _check_aligned(buffers, offset)
        return super().pwritev(fd, buffers, offset)


def _check_aligned(buffers: Sequence[Buffer], offset: int) -> None:
    for buffer in buffers:
        data = np.frombuffer(buffer, np.uint8)
        if data.ctypes.data % PAGE or len(data) % PAGE or offset % PAGE:
            raise OSError(errno.EINVAL, "not aligned")


def _segments(root: Path) -> list[Path]:
    folder = session_folder(root, SESSION)
    return [segment_path(folder, number) for number in segment_numbers(folder)]


def _write(root: Path, count: int = 40, **changes: Any) -> None:
    with closing(open_writer(root, **({"limits": DIRECT} | changes))) as writer:
        append(writer, count)
        writer.flush()


def _evict(root: Path) -> None:
    for path in _segments(root):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.usefixtures("small_scratch")
def test_a_direct_write_is_the_buffers_end_to_end_in_whole_aligned_pages(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [1, PAGE - 1, 3 * PAGE + 5, 7, 2 * PAGE, PAGE - 12]
    parts = [rng.bytes(size) for size in sizes]
    io = _Aligned()
    fd = io.create(tmp_path / "file")
    io.set_direct(fd, direct=True)
    write_direct(io, fd, parts, PAGE)
    assert io.direct_writes == 4
    assert os.pread(fd, 10 * PAGE, PAGE) == b"".join(parts)
    os.close(fd)


@pytest.mark.usefixtures("small_scratch")
def test_a_direct_read_gives_any_range_and_says_where_the_file_ends(direct_root: Path) -> None:
    data = np.random.default_rng(1).integers(0, 256, 5 * PAGE + 100, np.uint8)
    path = direct_root / "file"
    path.write_bytes(data.tobytes())
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    rng = random.Random(2)
    for _ in range(300):
        offset, first, second = (rng.randrange(6 * PAGE) for _ in range(3))
        arrays = [np.zeros(first, np.uint8), np.zeros((second, 2), np.uint16)]
        expected = data[offset : offset + first + 4 * second]
        assert read_direct(fd, arrays, offset) == len(expected)
        found = np.concatenate([arrays[0], arrays[1].reshape(-1).view(np.uint8)])
        assert (found[: len(expected)] == expected).all()
        assert not found[len(expected) :].any()
    os.close(fd)


@pytest.mark.usefixtures("small_scratch")
def test_a_session_is_the_same_past_the_page_cache(direct_root: Path) -> None:
    _write(direct_root, 20)
    _write(direct_root, 20)  # also after recovery, in a segment of its own
    assert not verify_store(direct_root).damage
    for disk_io in ("direct", "buffered"):
        _evict(direct_root)
        reader = SessionReader.open(direct_root, SESSION, disk_io=disk_io)
        snapshot = reader.snapshot()
        assert all(unit_is(reader, snapshot, index) for index in range(40))
        reader.close()


def test_what_is_read_directly_does_not_enter_the_page_cache(direct_root: Path) -> None:
    path = direct_root / "seg"
    path.write_bytes(bytes(range(256)) * 256)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if not in_page_cache(file.fileno(), 100, 5 * PAGE - 50):
            pytest.skip("this kernel does not tell what is in the page cache")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert not in_page_cache(file.fileno(), 100, 5 * PAGE - 50)
        array = np.zeros(100, np.uint8)
        for disk_io, cached in (("direct", False), ("buffered", True)):
            files = SegmentFiles(direct_root, disk_io)
            path.rename(segment_path(direct_root, 0))
            with files.lend(0) as opened:
                assert opened.read([array], 5 * PAGE - 50) == 100
            segment_path(direct_root, 0).rename(path)
            files.close()
            assert in_page_cache(file.fileno(), 100, 5 * PAGE - 50) == cached


def test_by_default_the_first_read_of_a_large_slice_passes_the_cache_and_the_second_fills_it(
    direct_root: Path,
) -> None:
    size = LEAST_BYTES
    path = segment_path(direct_root, 0)
    path.write_bytes(np.random.default_rng(4).bytes(2 * size))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if not in_page_cache(file.fileno(), size, 0):
            pytest.skip("this kernel does not tell what is in the page cache")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        files = SegmentFiles(direct_root)
        array, content = aligned_empty((size,), np.uint8), path.read_bytes()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for cached in (False, True, True):
            array[:] = 0
            with files.lend(0) as opened:
                assert opened.read([array], size) == size
            assert array.tobytes() == content[size:]
            assert in_page_cache(file.fileno(), size, size) == cached
        with files.lend(0) as opened:  # a small one is worth keeping at once
            assert opened.read([array[:PAGE]], 0) == PAGE
        assert in_page_cache(file.fileno(), PAGE, 0)
        files.close()


def test_a_slice_that_was_read_from_the_page_cache_comes_back_to_it(direct_root: Path) -> None:
    size = LEAST_BYTES
    path = segment_path(direct_root, 0)
    path.write_bytes(np.random.default_rng(5).bytes(size))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if not in_page_cache(file.fileno(), size, 0):
            pytest.skip("this kernel does not tell what is in the page cache")
        files = SegmentFiles(direct_root)
        array, content = aligned_empty((size,), np.uint8), path.read_bytes()
        for _ in range(2):
            array[:] = 0
            with files.lend(0) as opened:
                assert opened.read([array], 0) == size
            assert array.tobytes() == content
            assert in_page_cache(file.fileno(), size, 0)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert not in_page_cache(file.fileno(), size, 0)
        files.close()


def test_what_was_read_once_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.readonce._REMEMBERED", 10)
    once = ReadOnce()
    assert all(once.is_first(0, offset) for offset in range(100))
    assert not once.is_first(0, 99)
    assert once.is_first(1, 99)
    assert once.is_first(0, 0)
    assert len(once._young | once._old) <= 22


def test_memory_for_reads_starts_on_a_page_and_is_used_again() -> None:
    memory = KVMemory()
    keys, values = memory.take((3, 7), np.float32)
    keys[:], values[:] = 1, 2
    assert (keys == 1).all()
    assert keys.ctypes.data % PAGE == values.ctypes.data % PAGE == 0
    again, _ = memory.take((2, 5), np.uint16)
    assert again.ctypes.data == keys.ctypes.data
    larger, behind = memory.take((PAGE + 1,), np.uint8)
    assert behind.ctypes.data - larger.ctypes.data == 2 * PAGE
    assert aligned_empty((0, 4), np.float16).shape == (0, 4)


def test_damage_is_found_past_the_page_cache(direct_root: Path) -> None:
    _write(direct_root, 3)
    reader = SessionReader.open(direct_root, SESSION, disk_io="direct")
    snapshot = reader.snapshot()
    path = _segments(direct_root)[-1]
    size = path.stat().st_size
    with open(path, "r+b") as file:  # of the last block the last layer, padding included
        file.seek(size - PAGE)
        file.write(bytes(byte ^ 1 for byte in os.pread(file.fileno(), PAGE, size - PAGE)))
    _evict(direct_root)
    with pytest.raises(SliceCorruptError):
        read_unit(reader, snapshot, 2, 1)
    reader.close()


@pytest.mark.parametrize("refused_at", ["set", "write 1", "write 3"])
@pytest.mark.usefixtures("small_scratch")
def test_a_disk_that_refuses_direct_writes_is_written_buffered_and_it_is_said_once(
    root: Path, caplog: pytest.LogCaptureFixture, refused_at: str
) -> None:
    io = _Aligned(refused_at)
    with caplog.at_level(logging.WARNING, "kvstore.blocklog"):
        _write(root, 40, io=io)
    assert [record.levelname for record in caplog.records if "direct" in record.msg] == ["WARNING"]
    assert io.buffered_writes > len(_segments(root)) > 1
    assert not verify_store(root).damage
    reader = SessionReader.open(root, SESSION)
    assert all(unit_is(reader, reader.snapshot(), index) for index in range(40))
    reader.close()


def test_any_other_error_of_a_direct_write_fails_the_writer(root: Path) -> None:
    writer = open_writer(root, limits=DIRECT, io=_Aligned("write 1", errno.EIO))
    append(writer, 1)
    with pytest.raises(WriterFailedError):
        writer.flush()
    writer.close()


@pytest.mark.parametrize("refuses", ["open", "read"])
def test_a_disk_that_refuses_direct_reads_is_read_buffered_and_it_is_said(
    direct_root: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    refuses: str,
) -> None:
    _write(direct_root, 8)
    _evict(direct_root)
    real_open = os.open

    def open_buffered_only(path: Any, flags: int, *others: Any, **more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "injected")
        return real_open(path, flags, *others, **more)

    def read_nothing(fd: int, arrays: object, offset: int) -> int:
        raise OSError(errno.EINVAL, "injected")

    if refuses == "open":
        monkeypatch.setattr("kvstore.segmentfiles.os.open", open_buffered_only)
    else:
        monkeypatch.setattr("kvstore.segmentfiles.read_direct", read_nothing)
    reader = SessionReader.open(direct_root, SESSION, disk_io="direct")
    assert all(unit_is(reader, reader.snapshot(), index) for index in range(8))
    assert len([record for record in caplog.records if "direct reads" in record.msg]) == 1
    reader.close()


@pytest.mark.parametrize("kind", ["tmpfs", "overlay", "nfs4", ""])
def test_other_file_systems_are_never_written_directly(tmp_path: Path, kind: str) -> None:
    class _Other(DiskIO):
        def file_system(self, folder: Path) -> str:
            return kind

    assert not appends_direct("direct", tmp_path, _Other(), kept=True)
    assert not reads_direct("direct", Path("/proc"))


def test_by_default_blocks_pass_the_page_cache_where_a_tier_of_memory_keeps_them(
    tmp_path: Path,
) -> None:
    for mode, when_not_kept in (("auto", False), ("direct", True), ("buffered", False)):
        assert appends_direct(mode, tmp_path, _Aligned(), kept=False) == when_not_kept
        assert appends_direct(mode, tmp_path, _Aligned(), kept=True) == (mode != "buffered")


class _DirectSimulatedIO(SimulatedIO):
    """The simulated disk under direct writes, each of two pages at most."""

    direct: bool = False

    def file_system(self, folder: Path) -> str:
        return "xfs"

    def set_direct(self, fd: int, *, direct: bool) -> None:
        self._call()
        self.direct = direct

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if ".kvs" in str(self._path(fd)) and offset:
            assert self.direct
            _check_aligned(buffers, offset)
        return super().pwritev(fd, buffers, offset)


class _TrustsDirectWrites(_DirectSimulatedIO):
    """What went past the page cache is taken for durable."""

    def fdatasync(self, fd: int) -> None:
        self._call()


def _lives(io_class: type[SimulatedIO], session_count: int) -> Any:
    def make_io(disk: SimulatedDisk, rng: random.Random) -> SimulatedIO:
        return io_class(disk, killed_at=rng.randrange(1, 90))

    limits = replace(PLAIN_LIMITS, disk_io="direct")
    return live_and_die(session_count, 6, make_io=make_io, limits=limits)


@pytest.mark.usefixtures("small_scratch")
def test_nothing_acknowledged_is_lost_of_what_was_written_directly() -> None:
    tally = _lives(_DirectSimulatedIO, 20)
    assert tally.acknowledged > 300
    assert tally.torn_tails > 10


@pytest.mark.usefixtures("small_scratch")
def test_a_store_that_takes_a_direct_write_for_durable_is_caught() -> None:
    with pytest.raises(PromiseBrokenError):
        _lives(_TrustsDirectWrites, 100)
