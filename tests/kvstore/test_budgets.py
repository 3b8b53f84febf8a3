"""Budgets hold in bytes that the file system really uses, and a full one refuses without loss."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore.budget import DiskBudget
from kvstore.deletion import delete_session
from kvstore.diskio import DiskIO
from kvstore.diskuse import used_bytes
from kvstore.errors import BudgetExceededError, KVStoreError, StoreFullError
from kvstore.limits import BlockLimits
from kvstore.reader import SessionReader
from kvstore.space import Space, StoreUse
from kvstore.writer import SessionWriter
from tests.kvstore.samples import LIMITS, SESSION, SMALL, append, open_writer, unit_is

_KIB = 1024


def limits(**budget: int | float | str) -> BlockLimits:
    return replace(LIMITS, budget=DiskBudget(**budget))  # type: ignore[arg-type]


def fill(writer: SessionWriter) -> StoreFullError:
    with pytest.raises(StoreFullError) as raised:
        append(writer, 10_000)
    return raised.value


def folder_of(root: Path, session_id: str = SESSION) -> Path:
    return root / "sessions" / session_id


def open_other(root: Path, session_id: str, block_limits: BlockLimits) -> SessionWriter:
    (root / "shm").mkdir(exist_ok=True)
    return SessionWriter.open(
        root,
        session_id,
        geometry=SMALL,
        limits=block_limits,
        shm_dir=root / "shm",
        hot_tail_bytes=64 * _KIB,
    )


def everything_is_there(root: Path, unit_count: int) -> bool:
    reader = SessionReader.open(root, SESSION)
    snapshot = reader.snapshot()
    right = all(unit_is(reader, snapshot, index) for index in range(unit_count))
    reader.close()
    return snapshot.unit_count == unit_count and right


def test_what_is_used_is_what_the_file_system_allocated(root: Path) -> None:
    (root / "below").mkdir()
    (root / "sparse").touch()
    os.truncate(root / "sparse", 1 << 30)
    (root / "below" / "data").write_bytes(bytes(64 * _KIB))
    with open(root / "reserved", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 128 * _KIB)
    assert 192 * _KIB <= used_bytes(root) < 200 * _KIB
    assert used_bytes(root / "absent") == 0


def test_a_session_stops_at_its_budget_and_the_error_names_it(root: Path) -> None:
    budget_bytes = 700 * _KIB
    writer = open_writer(root, limits=limits(session_bytes=budget_bytes, high_fraction=0.9))
    error = fill(writer)
    assert isinstance(error, BudgetExceededError)
    assert error.budget == "session_budget_bytes"
    assert error.budget_bytes == budget_bytes
    assert error.used_bytes == used_bytes(folder_of(root))
    assert error.used_bytes + error.needed_bytes > 0.9 * budget_bytes
    for number in (error.budget, budget_bytes, error.used_bytes, error.needed_bytes):
        assert str(number) in str(error)
    # It was used, and it was not passed, on the disk: not in a count of ours.
    assert 0.7 * budget_bytes < used_bytes(folder_of(root)) <= 0.9 * budget_bytes
    durable = writer.durable_unit_count
    assert durable > 20
    writer.close()
    assert everything_is_there(root, durable)


def test_appending_goes_on_once_space_came_free(root: Path) -> None:
    writer = open_writer(root, limits=limits(session_bytes=1000 * _KIB))
    append(writer, 8)
    other = folder_of(root) / "index.rows"  # whatever lies in the folder counts
    other.write_bytes(bytes(700 * _KIB))
    fill(writer)
    for _ in range(2):
        with pytest.raises(BudgetExceededError):
            writer.flush()
    visible, durable = writer.visible_unit_count, writer.durable_unit_count
    other.unlink()
    append(writer, 20)
    writer.flush()
    assert writer.durable_unit_count == visible + 20 > durable
    writer.close()
    assert everything_is_there(root, visible + 20)


def test_the_stores_budget_counts_all_sessions_and_is_free_again_when_one_goes(root: Path) -> None:
    shared = limits(store_bytes=900 * _KIB)
    first = open_other(root, "cam-0", shared)
    with pytest.raises(BudgetExceededError):
        append(first, 10_000)
    first.close()
    writer = open_writer(root, limits=shared)
    with pytest.raises(BudgetExceededError) as raised:
        append(writer, 10_000)
    visible = writer.visible_unit_count
    assert raised.value.budget == "disk_budget_bytes"
    assert raised.value.used_bytes == used_bytes(root)
    delete_session(root, "cam-0")
    append(writer, 20)
    writer.flush()
    writer.close()
    assert everything_is_there(root, visible + 20)


def test_a_session_that_fills_its_budget_can_still_be_opened_and_recovered(root: Path) -> None:
    full = limits(session_bytes=500 * _KIB, store_bytes=500 * _KIB)
    writer = open_writer(root, limits=full)
    fill(writer)
    durable = writer.durable_unit_count
    writer.close()
    # Smaller than what is there, as after a change of the setting.
    writer = open_writer(root, limits=limits(session_bytes=100 * _KIB))
    assert writer.durable_unit_count == durable
    assert isinstance(fill(writer), BudgetExceededError)
    writer.close()
    assert everything_is_there(root, durable)


def test_the_reserve_is_for_recovery_alone(root: Path) -> None:
    folder_of(root).mkdir(parents=True)
    space = Space(
        root,
        folder_of(root),
        budget=DiskBudget(session_bytes=1000 * _KIB, high_fraction=0.9),
        min_free_bytes=0,
        io=DiskIO(),
    )
    with space.claim(900 * _KIB):
        pass
    with pytest.raises(BudgetExceededError), space.claim(901 * _KIB):
        pass
    with space.claim(1000 * _KIB, use_reserve=True):
        pass
    with pytest.raises(BudgetExceededError), space.claim(1001 * _KIB, use_reserve=True):
        pass


def test_two_that_grow_at_once_do_not_both_take_the_last_room(root: Path) -> None:
    use = StoreUse.of(root)
    assert StoreUse.of(root) is use
    took = []
    start = threading.Barrier(8)

    def grow() -> None:
        start.wait()
        took.append(use.claim(100, 250) >= 0)

    threads = [threading.Thread(target=grow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(took) == 2


def test_many_writers_together_stay_under_the_stores_budget(root: Path) -> None:
    budget_bytes = 1500 * _KIB
    shared = limits(store_bytes=budget_bytes, high_fraction=1.0)
    writers = [open_other(root, f"cam-{number}", shared) for number in range(4)]
    before = used_bytes(root)
    assert before < budget_bytes / 2  # their hot tails lie there too

    def fill_up(writer: SessionWriter) -> None:
        try:
            append(writer, 10_000)
        except StoreFullError:
            return

    threads = [threading.Thread(target=fill_up, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Folders and small files come beside what is asked for; the reserve is for them.
    assert 0.8 * budget_bytes < used_bytes(root) < 1.02 * budget_bytes
    for writer in writers:
        writer.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"session_bytes": -1},
        {"store_bytes": -1},
        {"low_fraction": 0.0},
        {"low_fraction": 0.99, "high_fraction": 0.5},
        {"high_fraction": 1.1},
        {"on_full": "explode"},
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DiskBudget(**wrong)  # type: ignore[arg-type]


def test_the_error_is_one_of_a_full_store() -> None:
    assert issubclass(BudgetExceededError, StoreFullError)
    assert issubclass(BudgetExceededError, KVStoreError)
