"""The ring that tells what questions read: what is taken was written, and nothing stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.geometry import Tier
from kvstore.readtrace import (
    QUESTION,
    RECORD_WORDS,
    SESSION,
    UNIT,
    ReadTrace,
    TraceReader,
    TraceView,
    layers_of,
    read_from,
)
from kvstore.sharedfile import clean_stale_files, shared_files
from tests.kvstore import trace_lives


@pytest.fixture
def shm(root: Path) -> Path:
    folder = root / "shm"
    folder.mkdir()
    return folder


def test_what_was_noted_is_taken_once_with_all_that_it_says(root: Path, shm: Path) -> None:
    trace = ReadTrace.create(root, shm_dir=shm, capacity=16)
    reader = TraceReader(root, shm_dir=shm)
    first, second = trace.question("a"), trace.question("b")
    first.note(3, [5, 1 << 31], [Tier.RAM, Tier.DISK])
    second.note(4, [7], [Tier.HOT])
    records = reader.poll()
    assert records[:, UNIT].tolist() == [5, 1 << 31, 7]
    assert layers_of(records).tolist() == [3, 3, 4]
    assert read_from(records, Tier.DISK).tolist() == [False, True, False]
    assert read_from(records, Tier.RAM).tolist() == [True, False, False]
    assert records[0, SESSION] == records[1, SESSION] != records[2, SESSION]
    assert records[0, QUESTION] == records[1, QUESTION] != records[2, QUESTION]
    assert len(reader.poll()) == 0
    trace.close()
    assert shared_files(root, "use", shm_dir=shm) == []


@given(
    sizes=st.lists(st.integers(0, 20), max_size=30), polls=st.sets(st.integers(0, 29), max_size=8)
)
def test_what_a_full_ring_wrote_over_is_counted_and_the_rest_comes_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], polls: set[int]
) -> None:
    root = tmp_path_factory.mktemp("trace")
    trace = ReadTrace.create(root, shm_dir=root, capacity=8)
    view = TraceView(trace.path)
    taken: list[int] = []
    written = 0
    for turn, size in enumerate(sizes):
        units = np.arange(written, written + size)
        records = np.zeros((size, RECORD_WORDS), np.uint64)
        records[:, UNIT] = units
        trace.write(records)
        # A batch longer than the ring is cut by its writer, whose counts know nothing of the rest.
        written += size
        if turn in polls:
            taken += view.poll()[:, UNIT].tolist()
    taken += view.poll()[:, UNIT].tolist()
    assert taken == sorted(set(taken))
    assert taken[-8:] == list(range(written))[-8:] or not written
    cut = sum(max(0, size - 8) for size in sizes)
    assert len(taken) + view.lost_count + cut == written
    trace.close()


def race(root: Path, make: type[TraceView]) -> int:
    """Take from a ring that another process writes at full speed; return the torn records."""
    writer = subprocess.Popen(
        [sys.executable, "-m", trace_lives.__name__, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    (path,) = shared_files(root, "use", shm_dir=root)
    view = make(path)
    torn = taken = 0
    for _ in range(20_000):
        records = view.poll()
        taken += len(records)
        torn += int((records != records[:, :1]).any(1).sum())
        torn += int((np.diff(records[:, 0].astype(np.int64)) != 1).sum())
        if torn:
            break
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert taken
    assert clean_stale_files(root, "use", shm_dir=root) == 1
    return torn


class CarelessView(TraceView):
    """The mutant: it does not ask how far the writer went on meanwhile."""

    def _begun(self) -> int:
        return 0


def test_records_that_are_written_over_while_they_are_taken_are_dropped(root: Path) -> None:
    assert race(root, TraceView) == 0


def test_without_the_second_look_something_torn_would_be_taken(root: Path) -> None:
    assert race(root, CarelessView) > 0


def test_what_a_killed_process_wrote_is_still_heard_and_its_ring_goes(
    root: Path, shm: Path
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from kvstore.geometry import Tier;"
        "from kvstore.readtrace import ReadTrace;"
        "t = ReadTrace.create(Path(sys.argv[1]), shm_dir=Path(sys.argv[1]) / 'shm');"
        "t.question('a').note(0, [1, 2, 3], [Tier.DISK] * 3); print('done', flush=True);"
        "time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    assert clean_stale_files(root, "use", shm_dir=shm) == 0
    reader = TraceReader(root, shm_dir=shm)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert reader.poll()[:, UNIT].tolist() == [1, 2, 3]
    assert clean_stale_files(root, "use", shm_dir=shm) == 1
    assert len(reader.poll()) == 0
    assert shared_files(root, "use", shm_dir=shm) == []


def test_a_file_that_is_no_ring_is_passed_over(root: Path, shm: Path) -> None:
    trace = ReadTrace.create(root, shm_dir=shm, capacity=16)
    for number, content in enumerate((b"", b"x" * 100, b"\0" * 8192)):
        trace.path.with_name(trace.path.name.rsplit("-", 1)[0] + f"-{number}.use").write_bytes(
            content
        )
    trace.question("a").note(0, [1], [Tier.RAM])
    assert TraceReader(root, shm_dir=shm).poll()[:, UNIT].tolist() == [1]
    trace.close()
