"""The open segment files of a process: so many, never closed under a reader, held up by nobody."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.filepool import MOST_DESCRIPTORS, FilePool, descriptor_limit
from kvstore.paths import segment_path, session_folder
from kvstore.reader import SessionReader
from kvstore.segmentfiles import OpenFile, SegmentFiles
from tests.kvstore.samples import SESSION, append, open_writer, unit_is

_LIMIT = 24
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["borrow", "borrow", "give back", "forget"]),
        st.integers(0, 2),
        st.integers(0, 5),
    ),
    max_size=150,
)


class Handle:
    """A file that knows whether it was closed rightly."""

    def __init__(self, descriptor_count: int) -> None:
        self.descriptor_count = descriptor_count
        self.user_count = 0
        self.kept = True
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        assert self.user_count == 0
        self.closed = True


@given(steps=STEPS, limit=st.integers(0, 6))
def test_no_file_in_use_is_closed_and_what_nobody_uses_stays_under_the_limit(
    steps: list[tuple[str, int, int]], limit: int
) -> None:
    pool: FilePool[Handle] = FilePool(lambda: limit)
    opened: list[Handle] = []
    borrowed: list[Handle] = []
    for step, number, segment in steps:
        if step == "borrow":
            file = pool.borrow((number, segment))
            if file is None:
                file = Handle(1 + segment % 2)
                opened.append(file)
                pool.add((number, segment), file)
            borrowed.append(file)
        elif step == "give back" and borrowed:
            pool.give_back(borrowed.pop(segment % len(borrowed)))
        elif step == "forget":
            pool.forget(number, lambda other, least=segment: other >= least)  # type: ignore[misc]
            for kept in range(segment, 6):
                assert (number, kept) not in pool._files
        assert not any(file.closed for file in borrowed)
        open_count = sum(file.descriptor_count for file in opened if not file.closed)
        in_use = sum(file.descriptor_count for file in set(borrowed))
        assert open_count <= max(limit, 0) + in_use
    for file in borrowed:
        pool.give_back(file)
    assert pool.descriptor_count == sum(f.descriptor_count for f in opened if not f.closed) <= limit
    for number in range(3):
        pool.forget(number, lambda _: True)
    assert all(file.closed for file in opened)


def test_what_was_not_used_for_longest_is_closed_first() -> None:
    pool: FilePool[Handle] = FilePool(lambda: 2)
    files = {segment: Handle(1) for segment in range(3)}
    for segment in (0, 1):
        pool.add((0, segment), files[segment])
        pool.give_back(files[segment])
    again = pool.borrow((0, 0))
    assert again is files[0]
    pool.give_back(again)
    pool.add((0, 2), files[2])
    assert [segment for segment, file in files.items() if file.closed] == [1]


def test_what_is_in_use_stays_for_others_to_use_though_it_is_the_oldest() -> None:
    pool: FilePool[Handle] = FilePool(lambda: 2)
    files = {segment: Handle(1) for segment in range(3)}
    for segment, file in files.items():
        pool.add((0, segment), file)
        if segment:
            pool.give_back(file)
    assert pool.borrow((0, 0)) is files[0]
    assert [segment for segment, file in files.items() if file.closed] == [1]


def test_forty_sessions_of_many_segments_stay_under_the_limit_and_every_read_succeeds(
    root: Path,
) -> None:
    pool: FilePool[OpenFile] = FilePool(lambda: _LIMIT)
    readers = {}
    for number in range(40):
        folder = root / str(number)
        built(folder, 60)
        readers[number] = SessionReader.open(folder, SESSION, open_files=pool)
    assert len(list(root.glob("*/sessions/*/seg-*.kvs"))) > 160
    rng = np.random.default_rng(0)
    most = 0
    for number, unit in zip(rng.integers(40, size=600), rng.integers(60, size=600), strict=True):
        reader = readers[int(number)]
        assert unit_is(reader, reader.snapshot(), int(unit))
        most = max(most, len(open_segments(root)))
    assert most == _LIMIT
    for reader in readers.values():
        reader.close()
    assert open_segments(root) == []
    assert pool.descriptor_count == 0


def test_a_segment_in_use_is_not_closed_under_the_reader(root: Path) -> None:
    built(root, 600)
    files = SegmentFiles(session_folder(root, SESSION), pool=FilePool(lambda: 1))
    with files.use(0) as fd:
        for number in range(1, 40):
            with files.use(number):
                assert len(open_segments(root)) == 2
        files.forget(0)
        assert len(os.pread(fd, 10, 0)) == 10
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pread(fd, 10, 0)
    files.close()


def test_threads_that_share_one_descriptor_read_what_was_written(root: Path) -> None:
    pool: FilePool[OpenFile] = FilePool(lambda: 1)
    built(root, 200)
    reader = SessionReader.open(root, SESSION, open_files=pool)
    snapshot = reader.snapshot()
    faults: list[BaseException] = []

    def read_on(seed: int) -> None:
        try:
            for index in np.random.default_rng(seed).permutation(200):
                assert unit_is(reader, snapshot, int(index))
        except BaseException as error:
            faults.append(error)
            raise

    threads = [threading.Thread(target=read_on, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(open_segments(root)) <= 1
    reader.close()


def test_a_file_whose_opening_hangs_holds_up_no_other_session(root: Path) -> None:
    pool: FilePool[OpenFile] = FilePool(lambda: 1)
    built(root, 60)
    hanging = root / "hanging"
    hanging.mkdir()
    os.mkfifo(segment_path(hanging, 0))  # whose opening waits for a writer

    def open_it() -> None:
        with pytest.raises(OSError, match="Illegal seek"), SegmentFiles(hanging, pool=pool).use(0):
            pass

    thread = threading.Thread(target=open_it)
    thread.start()
    reader = SessionReader.open(root, SESSION, open_files=pool)
    snapshot = reader.snapshot()
    assert all(unit_is(reader, snapshot, index) for index in range(60))
    assert thread.is_alive()
    os.close(os.open(segment_path(hanging, 0), os.O_WRONLY))
    thread.join()
    reader.close()


def test_the_limit_follows_from_what_the_process_may_open() -> None:
    assert descriptor_limit() == min(
        MOST_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
    )
    program = (
        "import resource, sys\n"
        "from kvstore.filepool import descriptor_limit\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "for soft in (2000, 100, 3):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "    print(descriptor_limit())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == [str(MOST_DESCRIPTORS), "25", "1"], run.stderr


def test_readers_that_are_given_no_pool_share_one_that_fits_the_process(root: Path) -> None:
    built(root, 300)
    program = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from kvstore.reader import SessionReader\n"
        "from tests.kvstore.samples import SESSION, unit_is\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (80, hard))\n"
        "root = Path(sys.argv[1])\n"
        "readers = [SessionReader.open(root, SESSION) for _ in range(4)]\n"
        "for unit in range(300):\n"
        "    for reader in readers:\n"
        "        assert unit_is(reader, reader.snapshot(), unit)\n"
        "fds = Path('/proc/self/fd')\n"
        "links = [os.readlink(fds / name) for name in os.listdir(fds) if (fds / name).exists()]\n"
        "print(sum('/seg-' in link for link in links))\n"
    )
    command = [sys.executable, "-c", program, str(root)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.stdout.strip() == "20", run.stderr


def built(root: Path, unit_count: int) -> None:
    writer = open_writer(root)
    append(writer, unit_count)
    writer.flush()
    writer.close()


def open_segments(root: Path) -> list[str]:
    """Segment files below a folder that this process holds open, once for each descriptor."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return [link for link in links if link.startswith(f"{root}/") and "/seg-" in link]
