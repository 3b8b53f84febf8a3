"""A restart finds the state that belongs to what is durable, or none, never another's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from kvstore.paths import REDUCTION_NAMES, session_folder
from svc.engine.reduction.base import ReductionState
from svc.engine.reduction_file import ReductionFile

SESSION = "cam"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    session_folder(tmp_path, SESSION).mkdir(parents=True)
    return tmp_path


def state(mark: float) -> ReductionState:
    return ReductionState(reference=torch.full((4, 3), mark), units_since_whole=int(mark))


def write(file: ReductionFile, unit_count: int, *, durable: int) -> None:
    file.write(
        unit_count,
        state(unit_count),
        durable_unit_count=durable,
        room=lambda _: nullcontext(),
    )


def marks(root: Path) -> list[int]:
    """Return the counts of units of which a new process finds the state."""
    found = []
    for unit_count in range(40):
        read = ReductionFile(root, SESSION).read(unit_count)
        if read is not None:
            assert read.to_bytes() == state(unit_count).to_bytes()
            found.append(unit_count)
    return found


def test_the_state_of_what_is_durable_outlives_a_block_that_never_came(root: Path) -> None:
    file = ReductionFile(root, SESSION)
    write(file, 4, durable=0)
    write(file, 8, durable=4)
    assert marks(root) == [4, 8]
    write(file, 12, durable=8)
    assert marks(root) == [8, 12]
    # the block of 12 failed and is tried again, then with more units: 8 is still what is durable
    write(file, 12, durable=8)
    write(file, 13, durable=8)
    assert marks(root) == [8, 13]
    # after a crash another process goes on from 8
    again = ReductionFile(root, SESSION)
    assert again.read(8) is not None
    write(again, 10, durable=8)
    assert marks(root) == [8, 10]


@pytest.mark.parametrize("kept", [0, 3, 40, -1])
def test_a_torn_or_flipped_state_is_none(root: Path, kept: int) -> None:
    file = ReductionFile(root, SESSION)
    write(file, 4, durable=0)
    write(file, 8, durable=4)
    path = session_folder(root, SESSION) / REDUCTION_NAMES[1]
    content = bytearray(path.read_bytes())
    if kept >= 0:
        path.write_bytes(content[:kept])
    else:
        content[-1] ^= 1
        path.write_bytes(content)
    assert marks(root) == [4]


def test_room_is_asked_for_what_a_file_grows_by(root: Path) -> None:
    asked: list[int] = []

    @contextmanager
    def room(byte_count: int) -> Iterator[None]:
        asked.append(byte_count)
        yield

    file = ReductionFile(root, SESSION)
    for unit_count in (4, 8, 12):
        file.write(unit_count, state(unit_count), durable_unit_count=unit_count - 4, room=room)
    assert asked[0] == asked[1] > 48
    assert asked[2] == 0


def test_a_state_that_remembers_nothing_takes_no_file(root: Path) -> None:
    ReductionFile(root, SESSION).write(
        4, ReductionState(), durable_unit_count=0, room=lambda _: nullcontext()
    )
    assert not list(session_folder(root, SESSION).iterdir())


def test_a_state_that_the_disk_does_not_give_is_none_and_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(ReductionFile(root, SESSION), 3, durable=0)
    assert marks(root) == [3]

    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, "no such luck")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert ReductionFile(root, SESSION).read(3) is None
    assert "cannot be read" in caplog.text
