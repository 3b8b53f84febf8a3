"""Waiting questions: order within a session, turns between sessions, nothing lost."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from svc.qa.fair_queue import FairQueue

PUSHES = st.lists(st.sampled_from("abc"), max_size=30)


def drained(queue: FairQueue[tuple[str, int]]) -> list[tuple[str, int]]:
    items = []
    while (item := queue.pop()) is not None:
        items.append(item)
    return items


@given(PUSHES)
def test_everything_pushed_comes_out_once_and_in_order_within_its_session(sessions: str) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    pushed = [(session, place) for place, session in enumerate(sessions)]
    for session, place in pushed:
        queue.push(session, (session, place))
    assert len(queue) == len(pushed)
    out = drained(queue)
    assert sorted(out, key=lambda item: item[1]) == pushed
    for session in "abc":
        own = [item for item in out if item[0] == session]
        assert own == sorted(own, key=lambda item: item[1])
    assert len(queue) == 0


@given(PUSHES)
def test_no_session_gets_a_second_turn_before_another_that_waits_gets_its_first(
    sessions: str,
) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for place, session in enumerate(sessions):
        queue.push(session, (session, place))
    left = Counter(sessions)
    out = [session for session, _ in drained(queue)]
    served: Counter[str] = Counter()
    for session in out:
        waiting = [other for other in left if left[other] > served[other]]
        assert served[session] == min(served[other] for other in waiting)
        served[session] += 1


def test_one_question_of_another_session_waits_one_turn_behind_a_flood() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for place in range(100):
        queue.push("flood", ("flood", place))
    queue.pop()
    queue.push("other", ("other", 0))
    assert [queue.pop(), queue.pop()] == [("flood", 1), ("other", 0)]
