"""Eviction policies: what every one must do, and what each is there for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.eviction import EvictionPolicy, FairShare, Fifo, Lru, NewestFirst, Place
from kvstore.s3fifo import S3Fifo

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "fifo": Fifo,
    "lru": Lru,
    "s3fifo": S3Fifo,
    "fair": lambda: FairShare(S3Fifo),
    "newest": lambda: NewestFirst(S3Fifo(), guaranteed_fraction=0.25),
}
PLACES = st.builds(Place, st.integers(0, 3), st.integers(0, 12), st.just(0))
STEPS = st.lists(
    st.tuples(st.sampled_from(["use", "use", "use", "push", "remove", "resize", "end"]), PLACES),
    max_size=120,
)


class Cache:
    """Holds places as an arena does, and checks that the policy holds the same."""

    def __init__(self, policy: EvictionPolicy, capacity: int) -> None:
        self.policy = policy
        self.held: set[Place] = set()
        self.resize(capacity)

    def resize(self, capacity: int) -> None:
        self.capacity = capacity
        self.policy.resize(capacity)
        while len(self.held) > capacity:
            self.evict()

    def evict(self) -> None:
        place = self.policy.evict()
        assert place in self.held
        self.held.remove(place)

    def make_room(self) -> None:
        if len(self.held) >= self.capacity:
            self.evict()
        assert len(self.held) < self.capacity

    def use(self, place: Place) -> bool:
        if place in self.held:
            self.policy.touch(place)
            return True
        self.make_room()
        self.policy.insert(place)
        self.held.add(place)
        return False

    def push(self, place: Place) -> None:
        if place in self.held or not isinstance(self.policy, NewestFirst):
            return
        self.make_room()
        self.policy.insert_newest(place)
        self.held.add(place)

    def check(self) -> None:
        assert len(self.policy) == len(self.held) <= self.capacity


@pytest.mark.parametrize("name", POLICIES)
@given(steps=STEPS, capacity=st.integers(1, 12))
def test_a_policy_holds_what_its_owner_holds_and_never_more_than_fits(
    name: str, steps: list[tuple[str, Place]], capacity: int
) -> None:
    cache = Cache(POLICIES[name](), capacity)
    for step, place in steps:
        if step == "use":
            cache.use(place)
        elif step == "push":
            cache.push(place)
        elif step == "remove" and place in cache.held:
            cache.policy.remove(place)
            cache.held.remove(place)
        elif step == "resize":
            cache.resize(1 + place.unit_index)
        elif step == "end" and isinstance(cache.policy, NewestFirst):
            cache.policy.end(place.session_hash)
        cache.check()
    while cache.held:
        cache.evict()
    cache.check()


@given(units=st.lists(st.integers(0, 400), max_size=400), capacity=st.integers(1, 30))
def test_the_ghost_remembers_no_more_than_fits(units: list[int], capacity: int) -> None:
    policy = S3Fifo()
    cache = Cache(policy, capacity)
    for unit in units:
        cache.use(Place(1, unit, 0))
        assert policy.ghost_count <= capacity


def hits_after_a_scan(policy: EvictionPolicy, *, hot: int, capacity: int, scan: int) -> float:
    """Use a hot set several times, then read much more once; what share of it is still there."""
    cache = Cache(policy, capacity)
    for _ in range(4):
        for unit in range(hot):
            cache.use(Place(1, unit, 0))
    for unit in range(scan):
        cache.use(Place(1, 10_000 + unit, 0))
    return sum(cache.use(Place(1, unit, 0)) for unit in range(hot)) / hot


@given(hot=st.integers(1, 60), scan=st.integers(1000, 3000))
def test_after_a_scan_of_much_more_than_fits_the_hot_set_still_hits(hot: int, scan: int) -> None:
    assert hits_after_a_scan(S3Fifo(), hot=hot, capacity=100, scan=scan) >= 0.9
    assert hits_after_a_scan(Lru(), hot=hot, capacity=100, scan=scan) == 0
    assert hits_after_a_scan(Fifo(), hot=hot, capacity=100, scan=scan) == 0


def test_what_was_not_used_for_longest_leaves_an_lru_first() -> None:
    cache = Cache(Lru(), 3)
    for unit in (1, 2, 3, 1, 4):
        cache.use(Place(1, unit, 0))
    assert {place.unit_index for place in cache.held} == {1, 3, 4}


def test_a_session_that_is_asked_much_more_leaves_the_others_their_share() -> None:
    fair, plain = Cache(FairShare(Lru), 100), Cache(Lru(), 100)
    for cache in (fair, plain):
        for unit in range(40):
            cache.use(Place(1, unit, 0))
        for unit in range(1000):
            cache.use(Place(2, unit, 0))
    assert sum(place.session_hash == 1 for place in fair.held) == 40
    assert sum(place.session_hash == 1 for place in plain.held) == 0


@given(reads=st.integers(0, 500))
def test_the_newest_units_of_every_live_session_stay_whatever_is_read(reads: int) -> None:
    cache = Cache(NewestFirst(S3Fifo(), guaranteed_fraction=0.25), 40)
    for unit in range(30):
        for session in (1, 2):
            cache.push(Place(session, unit, 0))
    for unit in range(reads):
        cache.use(Place(3, unit, 0))
    for session in (1, 2):
        newest = {Place(session, unit, 0) for unit in range(25, 30)}
        assert newest <= cache.held


def test_units_of_a_session_that_ended_are_no_better_than_others() -> None:
    policy = NewestFirst(Fifo(), guaranteed_fraction=0.5)
    cache = Cache(policy, 8)
    for unit in range(4):
        cache.push(Place(1, unit, 0))
    policy.end(1)
    for unit in range(8):
        cache.use(Place(2, unit, 0))
    assert {place.session_hash for place in cache.held} == {2}


def test_a_guaranteed_unit_that_was_used_is_not_on_probation_afterwards() -> None:
    policy = NewestFirst(S3Fifo(), guaranteed_fraction=0.1)
    cache = Cache(policy, 20)
    cache.push(Place(1, 0, 0))
    cache.use(Place(1, 0, 0))
    for unit in range(1, 200):
        cache.push(Place(1, unit, 0))
    assert Place(1, 0, 0) in cache.held
    assert Place(1, 1, 0) not in cache.held
