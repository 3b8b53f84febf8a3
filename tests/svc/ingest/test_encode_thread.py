"""The encode thread: order within a lane, turns between lanes, faults that stay in their lane."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from svc.ingest.encode_thread import EncodeThread, Lane, LaneFailedError, shared

Take = Callable[[Sequence[int]], object]
Thread = EncodeThread[Take, int]


def each_alone(work: Sequence[tuple[Take, Sequence[int]]]) -> list[Exception | None]:
    """Streams are functions here that take the units."""
    errors: list[Exception | None] = []
    for take, units in work:
        try:
            take(units)
        except OSError as error:
            errors.append(error)
        else:
            errors.append(None)
    return errors


def lane_of(thread: Thread, take: Take) -> Lane[Take, int]:
    return thread.lane(take, lambda error: None)


@pytest.fixture
def thread() -> Iterator[Thread]:
    thread = EncodeThread(each_alone, units_per_pass=2)
    yield thread
    assert thread.stop(10)


class Gate:
    """Holds the encode thread inside a job until it is opened."""

    def __init__(self, thread: EncodeThread[Any, Any]) -> None:
        self._open = threading.Event()
        inside = threading.Event()

        def job() -> None:
            inside.set()
            assert self._open.wait(10)

        thread.submit(job)
        assert inside.wait(10)

    def open(self) -> None:
        self._open.set()


def test_units_and_jobs_of_a_lane_run_in_the_order_they_came(thread: Thread) -> None:
    log: list[object] = []
    lane: Lane[Take, int] = lane_of(thread, log.extend)
    gate = Gate(thread)
    lane.put(1)
    flushed = lane.submit(lambda: log.append("flush"))
    lane.put(2)
    closed = lane.submit(lambda: log.append("close"))
    gate.open()
    flushed.result(10)
    closed.result(10)
    assert log == [1, "flush", 2, "close"]


def test_lanes_share_a_bounded_pass_and_take_turns() -> None:
    passes: list[list[tuple[str, int]]] = []

    def encode(work: Sequence[tuple[str, Sequence[int]]]) -> list[Exception | None]:
        passes.append([(name, len(units)) for name, units in work])
        return [None] * len(work)

    thread = EncodeThread(encode, units_per_pass=3)
    gate = Gate(thread)
    lanes = {name: thread.lane(name, lambda error: None) for name in "abcd"}
    for name, count in {"a": 5, "b": 1, "c": 1, "d": 1}.items():
        for unit in range(count):
            lanes[name].put(unit)
    done = [lane.submit(lambda: None) for lane in lanes.values()]
    gate.open()
    for future in done:
        future.result(10)
    assert passes[0] == [("a", 1), ("b", 1), ("c", 1)]
    assert passes[1] == [("d", 1), ("a", 2)]
    assert passes[2] == [("a", 2)]
    assert thread.stop(10)


@pytest.mark.parametrize(
    ("wanted", "total", "given"),
    [([5, 1, 1], 3, [1, 1, 1]), ([5, 1], 4, [3, 1]), ([2, 2], 8, [2, 2]), ([], 4, [])],
)
def test_a_pass_is_shared_evenly(wanted: list[int], total: int, given: list[int]) -> None:
    assert shared(wanted, total) == given


def test_a_full_lane_makes_its_producer_wait(thread: Thread) -> None:
    taken: list[int] = []
    lane: Lane[Take, int] = lane_of(thread, taken.extend)
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
    thread: Thread,
) -> None:
    def fail(units: Sequence[int]) -> None:
        raise OSError("disk gone")

    lane = lane_of(thread, fail)
    gate = Gate(thread)
    for unit in range(4):
        lane.put(unit)
    gate.open()
    assert lane.submit(lambda: "closed").result(10) == "closed"
    with pytest.raises(LaneFailedError) as caught:
        lane.put(9)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_failed_encode_wakes_a_producer_that_waits(thread: Thread) -> None:
    def fail(units: Sequence[int]) -> None:
        raise OSError("disk gone")

    lane = lane_of(thread, fail)
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


def test_one_lanes_fault_leaves_the_others_served(thread: Thread) -> None:
    def fail(units: Sequence[int]) -> None:
        raise OSError("disk gone")

    taken: list[int] = []
    bad: Lane[Take, int] = lane_of(thread, fail)
    good: Lane[Take, int] = lane_of(thread, taken.extend)
    bad.put(1)
    good.put(2)
    good.submit(lambda: None).result(10)
    bad.submit(lambda: None).result(10)
    assert taken == [2]


def test_a_job_that_fails_hands_its_error_to_whoever_waits(thread: Thread) -> None:
    def fail() -> None:
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        lane_of(thread, lambda units: None).submit(fail).result(10)


def test_a_job_that_was_submitted_runs_even_if_nobody_waits_any_more(
    thread: Thread,
) -> None:
    ran = threading.Event()
    gate = Gate(thread)
    future = lane_of(thread, lambda units: None).submit(ran.set)
    assert not future.cancel()
    gate.open()
    assert ran.wait(10)
