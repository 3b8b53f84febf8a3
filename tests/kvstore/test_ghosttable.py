"""The memory of slices that left: the last so many, in memory that is taken whole."""

from __future__ import annotations

import tracemalloc

from hypothesis import example, given
from hypothesis import strategies as st

from kvstore.eviction import Place
from kvstore.ghosttable import GhostTable

STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "take", "resize"]), st.integers(0, 30)), max_size=150
)


@given(steps=STEPS, capacity=st.integers(0, 20))
@example(steps=[("add", 0), ("add", 0), ("resize", 2)], capacity=0)
def test_nothing_is_remembered_but_the_last_so_many_that_were_not_taken(
    steps: list[tuple[str, int]], capacity: int
) -> None:
    ghosts, added = GhostTable(), []
    ghosts.resize(capacity)
    for step, unit in steps:
        place = Place(7, unit, 1)
        if step == "add" and place not in ghosts:
            ghosts.add(place)
            added.append(unit)
        elif step == "take":
            assert ghosts.take(place) in (False, unit in added[-capacity:])
            assert place not in ghosts
        elif step == "resize":
            capacity = unit
            ghosts.resize(capacity)
        last = set(added[-capacity:]) if capacity else set()
        remembered = {unit for unit in range(31) if Place(7, unit, 1) in ghosts}
        assert remembered <= last
        assert len(ghosts) == len(remembered) <= capacity
    if added and capacity:
        ghosts.add(Place(8, 0, 0))
        assert Place(8, 0, 0) in ghosts


def test_nearly_all_of_the_last_ones_are_remembered_and_none_before_them() -> None:
    ghosts = GhostTable()
    ghosts.resize(10_000)
    for unit in range(50_000):
        ghosts.add(Place(3, unit // 5, unit % 5))
    kept = sum(Place(3, unit // 5, unit % 5) in ghosts for unit in range(40_000, 50_000))
    assert kept >= 9800
    assert not any(Place(3, unit // 5, unit % 5) in ghosts for unit in range(40_000))
    assert len(ghosts) == kept


def test_what_is_remembered_survives_more_room() -> None:
    ghosts = GhostTable()
    ghosts.resize(100)
    for unit in range(100):
        ghosts.add(Place(3, unit, 0))
    before = {unit for unit in range(100) if Place(3, unit, 0) in ghosts}
    ghosts.resize(10_000)
    assert {unit for unit in range(100) if Place(3, unit, 0) in ghosts} == before
    assert len(before) >= 90


def test_memory_is_taken_whole_before_anything_is_remembered() -> None:
    ghosts = GhostTable()
    tracemalloc.start()
    try:
        ghosts.resize(10_000)
        taken, _ = tracemalloc.get_traced_memory()
        for unit in range(30_000):
            ghosts.add(Place(3, unit, 0))
        grown = tracemalloc.get_traced_memory()[0] - taken
    finally:
        tracemalloc.stop()
    assert 32 * 10_000 <= taken < 40 * 10_000
    assert grown < 1000
