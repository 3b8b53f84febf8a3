"""When an answer of a store that forgets may differ from one of a store that keeps all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.soak.record import Record
from eval.soak.verdict import Pair, Verdict, pair_up

WHOLE = Record(
    session="soak-0",
    number=4,
    kind="past_colour",
    question="what colour was the star ?",
    expected="red",
    asked_at_s=900.0,
    visible_s=905.0,
    evidence_s=((300.0, 306.0),),
    text="red",
    cited_s=((300.0, 306.0), (880.0, 881.0)),
)


def verdict(**changes: object) -> Verdict:
    return Pair(replace(WHOLE, **changes), WHOLE).verdict


def test_the_same_text_is_equal_whatever_was_forgotten() -> None:
    assert verdict() is Verdict.EQUAL
    assert verdict(remembers_from_s=500.0, cited_s=()) is Verdict.EQUAL


def test_another_text_about_what_was_dropped_says_so() -> None:
    assert verdict(text="blue", remembers_from_s=300.5) is Verdict.FORGOTTEN


@pytest.mark.parametrize("floor_s", [None, 200.0, 300.0])
def test_another_text_is_a_difference_when_all_it_rests_on_is_remembered(
    floor_s: float | None,
) -> None:
    assert verdict(text="blue", remembers_from_s=floor_s) is Verdict.DIFFERENT


def test_another_text_that_says_what_was_thinned_is_coarsened_and_an_equal_one_stays_equal() -> (
    None
):
    thinned = {"coarsened_s": ((300.0, 306.0),), "tokens_left": 4, "tokens_whole": 54}
    assert verdict(text="blue", **thinned) is Verdict.COARSENED
    assert verdict(**thinned) is Verdict.EQUAL
    assert not Pair(replace(WHOLE, **thinned), WHOLE).complete


def test_what_only_the_whole_store_cites_counts_too() -> None:
    unseen = replace(WHOLE, kind="not_seen", evidence_s=(), text="not seen")
    ours = replace(unseen, text="red", remembers_from_s=400.0, cited_s=((890.0, 891.0),))
    assert Pair(ours, unseen).verdict is Verdict.FORGOTTEN


def test_a_refusal_is_fine_only_before_what_is_remembered() -> None:
    gone = {"text": None, "failure": "ASKED_AT_BEFORE_START"}
    assert verdict(**gone, remembers_from_s=901.0) is Verdict.FORGOTTEN
    assert verdict(**gone, remembers_from_s=900.0) is Verdict.FAILED
    assert verdict(**gone) is Verdict.FAILED
    assert verdict(text=None, failure="DATA_LOSS", remembers_from_s=901.0) is Verdict.FAILED


def test_without_an_answer_of_the_whole_store_there_is_nothing_to_compare() -> None:
    assert Pair(WHOLE, replace(WHOLE, text=None, failure="DATA_LOSS")).verdict is Verdict.FAILED


def test_likelihoods_are_compared_choice_by_choice() -> None:
    ours = replace(WHOLE, log_likelihoods=(-0.5, -3.0))
    theirs = replace(WHOLE, log_likelihoods=(-0.25, -3.125))
    assert Pair(ours, theirs).likelihood_difference == 0.25
    assert Pair(WHOLE, theirs).likelihood_difference is None


def test_questions_are_paired_by_session_and_number() -> None:
    other = replace(WHOLE, session="soak-1")
    assert [pair.whole for pair in pair_up([WHOLE], [other, WHOLE])] == [WHOLE]
