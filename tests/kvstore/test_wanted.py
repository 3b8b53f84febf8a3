"""What the RAM tier is to bring in: bounded, and one session after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.eviction import Place
from kvstore.wanted import Wanted

PLACES = st.builds(Place, st.integers(0, 3), st.integers(0, 9), st.integers(0, 1))


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "add", "take", "pass on", "forget", "drop"]), PLACES),
        max_size=120,
    ),
    most_count=st.integers(1, 12),
)
def test_what_is_wanted_is_counted_bounded_and_given_out_once(
    steps: list[tuple[str, Place]], most_count: int
) -> None:
    wanted, expected = Wanted(most_count), set[Place]()
    for step, place in steps:
        if step == "add":
            wanted.add(place)
            lost = (expected | {place}) - set(wanted)
            assert len(lost) <= (len(expected) == most_count)
            expected = (expected | {place}) - lost
        elif step == "take" and expected:
            turn = wanted.session
            taken = wanted.take()
            assert taken.session_hash == turn
            expected.remove(taken)
        elif step == "pass on":
            wanted.pass_on()
        elif step == "forget":
            wanted.forget(place.session_hash)
            expected = {each for each in expected if each.session_hash != place.session_hash}
        elif step == "drop":
            wanted.forget(place.session_hash, before_unit=place.unit_index)
            expected = {
                each
                for each in expected
                if each.session_hash != place.session_hash or each.unit_index >= place.unit_index
            }
        assert set(wanted) == expected
        assert len(wanted) == len(list(wanted)) == len(expected) <= most_count
        assert (wanted.session is None) == (not expected)


def test_one_session_is_taken_whole_and_turns_go_round() -> None:
    wanted = Wanted(100)
    for unit in range(3):
        for session in (1, 2):
            wanted.add(Place(session, unit, 0))
    assert [wanted.take().session_hash for _ in range(2)] == [1, 1]
    wanted.pass_on()
    assert [wanted.take() for _ in range(4)] == [
        Place(2, 0, 0),
        Place(2, 1, 0),
        Place(2, 2, 0),
        Place(1, 2, 0),
    ]


def test_what_is_wanted_again_waits_anew() -> None:
    wanted = Wanted(100)
    for unit in (0, 1, 0):
        wanted.add(Place(1, unit, 0))
    assert [wanted.take().unit_index for _ in range(2)] == [1, 0]
