"""The encode thread: order within a lane, turns between lanes, faults that stay in their lane."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from svc.ingest.encode_thread import EncodeThread, Lane, LaneFailedError


@pytest.fixture
def thread() -> Iterator[EncodeThread]:
    thread = EncodeThread(units_per_pass=2)
    yield thread
    assert thread.stop(10)


class Gate:
    """Holds the encode thread inside a job until it is opened."""

    def __init__(self, thread: EncodeThread) -> None:
        self._open = threading.Event()
        inside = threading.Event()

        def job() -> None:
            inside.set()
            assert self._open.wait(10)

        thread.lane(lambda units: None).submit(job)
        assert inside.wait(10)

    def open(self) -> None:
        self._open.set()


def test_units_and_jobs_of_a_lane_run_in_the_order_they_came(thread: EncodeThread) -> None:
    log: list[object] = []
    lane: Lane[int] = thread.lane(log.extend)
    gate = Gate(thread)
    lane.put(1)
    flushed = lane.submit(lambda: log.append("flush"))
    lane.put(2)
    closed = lane.submit(lambda: log.append("close"))
    gate.open()
    flushed.result(10)
    closed.result(10)
    assert log == [1, "flush", 2, "close"]


def test_lanes_take_turns_and_a_turn_is_bounded(thread: EncodeThread) -> None:
    turns: list[tuple[str, int]] = []
    gate = Gate(thread)

    def lane_of(name: str) -> Lane[int]:
        return thread.lane(lambda units: turns.append((name, len(units))))

    lanes = {name: lane_of(name) for name in "ab"}
    for name in "ab":
        for unit in range(4):
            lanes[name].put(unit)
    done = [lane.submit(lambda: None) for lane in lanes.values()]
    gate.open()
    for future in done:
        future.result(10)
    assert turns == [("a", 2), ("b", 2), ("a", 2), ("b", 2)]


def test_a_full_lane_makes_its_producer_wait(thread: EncodeThread) -> None:
    taken: list[int] = []
    lane: Lane[int] = thread.lane(taken.extend)
    gate = Gate(thread)
    put_count = 0

    def produce() -> None:
        nonlocal put_count
        for unit in range(6):
            lane.put(unit)
            put_count += 1

    producer = threading.Thread(target=produce)
    producer.start()
    producer.join(0.2)
    assert producer.is_alive()
    assert put_count == 4
    gate.open()
    producer.join(10)
    lane.submit(lambda: None).result(10)
    assert taken == [0, 1, 2, 3, 4, 5]


def test_a_failed_encode_drops_what_waits_refuses_more_and_still_runs_jobs(
    thread: EncodeThread,
) -> None:
    def fail(units: Sequence[int]) -> None:
        raise OSError("disk gone")

    lane = thread.lane(fail)
    gate = Gate(thread)
    for unit in range(4):
        lane.put(unit)
    gate.open()
    assert lane.submit(lambda: "closed").result(10) == "closed"
    with pytest.raises(LaneFailedError) as caught:
        lane.put(9)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_failed_encode_wakes_a_producer_that_waits(thread: EncodeThread) -> None:
    def fail(units: Sequence[int]) -> None:
        raise OSError("disk gone")

    lane = thread.lane(fail)
    gate = Gate(thread)
    failed = threading.Event()

    def produce() -> None:
        try:
            for unit in range(50):
                lane.put(unit)
        except LaneFailedError:
            failed.set()

    producer = threading.Thread(target=produce)
    producer.start()
    gate.open()
    producer.join(10)
    assert failed.is_set()


def test_one_lanes_fault_leaves_the_others_served(thread: EncodeThread) -> None:
    def fail(units: Sequence[int]) -> None:
        raise OSError("disk gone")

    taken: list[int] = []
    bad: Lane[int] = thread.lane(fail)
    good: Lane[int] = thread.lane(taken.extend)
    bad.put(1)
    good.put(2)
    good.submit(lambda: None).result(10)
    bad.submit(lambda: None).result(10)
    assert taken == [2]


def test_a_job_that_fails_hands_its_error_to_whoever_waits(thread: EncodeThread) -> None:
    def fail() -> None:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        thread.lane(lambda units: None).submit(fail).result(10)


def test_a_job_that_was_submitted_runs_even_if_nobody_waits_any_more(
    thread: EncodeThread,
) -> None:
    ran = threading.Event()
    gate = Gate(thread)
    future = thread.lane(lambda units: None).submit(ran.set)
    assert not future.cancel()
    gate.open()
    assert ran.wait(10)
