"""Which units a question sees, over all sessions, times and states of reception."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.control import Watermarks
from kvstore.snapshot import Snapshot
from svc.qa.as_of import Cut, Wait, cut_snapshot
from svc.rpc.errors import Reason, RequestError

NOTHING_KNOWN = Watermarks(1, None, None)
TIMES = st.lists(st.integers(0, 20), max_size=8, unique=True).map(sorted)
ASKED = st.integers(-2, 24).map(lambda half: half / 2)
CUTS = st.sampled_from(["at_or_before", "before"])


def snapshot(times_s: list[float], *, epoch: int = 1, first_unit: int = 0) -> Snapshot:
    times = np.array(times_s, np.float64)
    ones: Any = np.ones(len(times), np.int64)
    return Snapshot(
        epoch=epoch,
        unit_count=len(times),
        durable_unit_count=len(times),
        first_pts_s=times - 0.5,
        last_pts_s=times,
        token_counts=ones,
        position_spans=ones,
        drop_fractions=np.zeros(len(times)),
        gaps_before=np.zeros(len(times), np.bool_),
        coarsened=np.zeros(len(times), np.bool_),
        first_unit=first_unit,
        hot_tail=None,
    )


def refused(*args: Any, **kwargs: Any) -> Reason:
    with pytest.raises(RequestError) as caught:
        cut_snapshot(*args, **kwargs)
    return caught.value.reason


@given(TIMES, ASKED, CUTS, st.booleans())
def test_nothing_after_the_time_is_seen_and_nothing_before_it_is_missing(
    times_s: list[float], asked_at_s: float, cut: Cut, finished: bool
) -> None:
    marks = Watermarks(1, math.inf, math.inf)  # everything has come
    belongs = [t <= asked_at_s if cut == "at_or_before" else t < asked_at_s for t in times_s]
    question: Any = {"asked_at_s": asked_at_s, "cut": cut, "finished": finished}
    if not any(belongs):
        expected = Reason.ASKED_AT_BEFORE_START if times_s else Reason.SESSION_EMPTY
        assert refused(snapshot(times_s), marks, **question) is expected
        return
    seen = cut_snapshot(snapshot(times_s), marks, **question)
    assert isinstance(seen, Snapshot)
    assert seen.last_pts_s.tolist() == times_s[: sum(belongs)]
    assert seen.unit_count == sum(belongs)


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=12, unique=True).map(sorted),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(-6, 10),
    CUTS,
)
def test_a_live_session_answers_only_about_what_is_settled(
    times_s: list[float], coming_count: int, received_lag_s: int, asked_lag: int, cut: Cut
) -> None:
    """What is seen at once never changes when more of the stream becomes visible."""
    visible = times_s[: max(1, len(times_s) - coming_count)]
    settled_s = visible[-1]
    received_s, asked_at_s = settled_s + received_lag_s, settled_s + asked_lag / 2
    later = snapshot(times_s)  # some of it was received already, and is on its way
    question: Any = {"asked_at_s": asked_at_s, "cut": cut, "finished": False}
    try:
        now = cut_snapshot(snapshot(visible), Watermarks(1, received_s, settled_s), **question)
    except RequestError as error:
        if error.reason is Reason.ASKED_AT_NOT_RECEIVED:
            assert asked_at_s > received_s
        return
    if isinstance(now, Wait):
        assert settled_s < asked_at_s <= received_s
        return
    then = cut_snapshot(later, Watermarks(1, math.inf, math.inf), **question)
    assert isinstance(then, Snapshot)
    assert now.last_pts_s.tolist() == then.last_pts_s.tolist()


def test_without_a_time_everything_visible_is_seen() -> None:
    whole = snapshot([1.0, 2.0])
    assert (
        cut_snapshot(whole, NOTHING_KNOWN, asked_at_s=None, cut="before", finished=False) is whole
    )


def test_with_no_word_from_the_writer_the_last_visible_unit_is_the_limit() -> None:
    question: Any = {"cut": "at_or_before", "finished": False}
    whole = snapshot([1.0, 2.0])
    seen = cut_snapshot(whole, NOTHING_KNOWN, asked_at_s=2.0, **question)
    assert isinstance(seen, Snapshot)
    assert seen.unit_count == 2
    assert refused(whole, NOTHING_KNOWN, asked_at_s=2.1, **question) is Reason.ASKED_AT_NOT_RECEIVED


def test_a_finished_session_has_no_later_time() -> None:
    whole = snapshot([1.0, 2.0])
    seen = cut_snapshot(whole, NOTHING_KNOWN, asked_at_s=99.0, cut="at_or_before", finished=True)
    assert isinstance(seen, Snapshot)
    assert seen.unit_count == 2


def test_words_of_another_writer_than_the_snapshots_are_not_believed() -> None:
    seen = cut_snapshot(
        snapshot([1.0], epoch=2),
        Watermarks(1, 5.0, 5.0),
        asked_at_s=4.0,
        cut="at_or_before",
        finished=False,
    )
    assert isinstance(seen, Wait)


@given(st.integers(1, 8), st.integers(0, 8), ASKED, CUTS, st.booleans())
def test_a_time_of_which_nothing_is_left_is_refused_with_the_time_the_memory_begins(
    unit_count: int, first_unit: int, asked_at_s: float, cut: Cut, whole: bool
) -> None:
    first_unit = min(first_unit, unit_count)
    times_s = [float(second) for second in range(unit_count)]
    if not whole:  # as a reader knows them that came after they were dropped
        times_s[:first_unit] = [-math.inf] * first_unit
    seen = snapshot(times_s, first_unit=first_unit)
    question: Any = {"asked_at_s": asked_at_s, "cut": cut, "finished": True}
    left = [
        t
        for t in times_s[first_unit:]
        if (t <= asked_at_s if cut == "at_or_before" else t < asked_at_s)
    ]
    if first_unit == unit_count:
        assert refused(seen, NOTHING_KNOWN, **question) is Reason.SESSION_EMPTY
    elif not left:
        with pytest.raises(RequestError) as caught:
            cut_snapshot(seen, NOTHING_KNOWN, **question)
        assert caught.value.reason is Reason.ASKED_AT_BEFORE_START
        assert caught.value.metadata["first_pts_s"] == str(times_s[first_unit])
        assert ("forgotten" in str(caught.value)) == (first_unit > 0)
    else:
        got = cut_snapshot(seen, NOTHING_KNOWN, **question)
        assert isinstance(got, Snapshot)
        assert got.first_unit == first_unit
        assert got.last_pts_s[first_unit:].tolist() == left
