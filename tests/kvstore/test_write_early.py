"""A block that is written in pieces is the same bytes, and its sync is told every error."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import diskio
from kvstore.diskio import DiskIO, write_early
from kvstore.errors import WriterFailedError
from tests.faults.content import append_to, open_for
from tests.kvstore.samples import LIMITS

PAGE = 4096


class _Watched(DiskIO):
    """Notes which ranges the disk was told to begin with."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []

    def begin_write_out(self, fd: int, offset: int, length: int) -> None:
        assert os.fstat(fd).st_size >= offset + length, "it was not written yet"
        self.begun.append((offset, offset + length))
        super().begin_write_out(fd, offset, length)


@given(sizes=st.lists(st.integers(0, 5000), max_size=20), pages=st.integers(0, 3))
def test_what_lies_on_disk_is_what_was_given(sizes: list[int], pages: int) -> None:
    buffers = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        patch.setattr(diskio, "_PIECE_BYTES", 2 * PAGE)
        io = _Watched()
        write_early(io, file.fileno(), [each for each in buffers if each], pages * PAGE)
        file.seek(0)
        assert file.read() == (bytes(pages * PAGE) if any(sizes) else b"") + b"".join(buffers)
    # Each page at most once: the disk would have to write it again.
    stops = [pages * PAGE, *(stop for _, stop in io.begun)]
    assert [start for start, _ in io.begun] == stops[:-1]
    assert all(stop % PAGE == 0 for stop in stops)


@pytest.mark.parametrize(("code", "fails"), [(errno.EIO, True), (errno.ENOSYS, False)])
def test_an_error_of_the_disk_ends_the_writer_and_a_call_that_is_missing_does_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int, fails: bool
) -> None:
    class _Libc:
        @staticmethod
        def sync_file_range(*arguments: object) -> int:
            return -1

    monkeypatch.setattr(diskio, "_PIECE_BYTES", PAGE)
    monkeypatch.setattr(diskio, "_libc", _Libc)
    monkeypatch.setattr("ctypes.get_errno", lambda: code)
    writer = open_for(root, LIMITS)
    append_to(writer, 1)
    if fails:
        with pytest.raises(WriterFailedError):
            writer.flush()
    else:
        writer.flush()
    assert writer.durable_unit_count == (0 if fails else 1)
    writer.close()
