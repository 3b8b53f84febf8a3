"""Questions to a real QA process, over a store that is being written."""

from collections.abc import Callable

import grpc
import pytest

from lookback.v1 import question_pb2 as pb
from tests.svc.qa.service import LiveSession, QaProcess, Refusal, finish, sampled

Live = Callable[..., LiveSession]


def test_an_answer_says_what_it_rests_on(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([float(t) for t in range(12)])
    answer = qa.ask(session.session_id)
    assert answer.finish_reason == pb.Answer.FINISH_REASON_LENGTH
    assert (answer.evidence_until_s, answer.asked_at_s) == (11.0, 11.0)
    assert answer.snapshot_unit_count == 12
    assert answer.retrieved_unit_count == 12  # fewer than the default allows
    assert answer.retrieved_token_count == 12 * 9
    assert answer.prompt_token_count > answer.retrieved_token_count
    assert answer.answer_token_count == 8
    assert 0 < answer.ttft_s <= answer.total_s
    assert answer.model
    [span] = answer.evidence
    assert (span.start_s, span.end_s) == (0.0, 12.0)
    assert span.score == pytest.approx(1.0)


def test_an_answer_names_the_units_that_each_layer_read_where_it_is_asked_to(
    qa: QaProcess, live: Live
) -> None:
    session = live()
    session.push([float(t) for t in range(12)])
    options = pb.RetrievalOptions(unit_count=3, recent_unit_count=2)
    answer = qa.ask(session.session_id, retrieval=options, report_units_read=True)
    layers = [list(layer.unit_indices) for layer in answer.units_read]
    assert len(layers) == 3
    for units in layers:
        assert units == sorted(set(units))
        assert len(units) == 3
        assert units[1:] == [10, 11]
    named = pb.RetrievalOptions(unit_indices=[1, 4])
    answer = qa.ask(session.session_id, retrieval=named, report_units_read=True)
    assert [list(layer.unit_indices) for layer in answer.units_read] == [[1, 4]] * 3
    assert not qa.ask(session.session_id, retrieval=named).units_read


def test_evidence_names_the_tier_it_was_read_from(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0, 1.0])
    options = pb.RetrievalOptions(unit_indices=[1])
    [span] = qa.ask(session.session_id, retrieval=options).evidence
    assert (span.start_s, span.end_s, span.tier) == (1.0, 2.0, pb.Evidence.TIER_HOT)
    session.finish()
    [span] = qa.ask(session.session_id, retrieval=options).evidence
    assert (span.start_s, span.end_s, span.tier) == (1.0, 2.0, pb.Evidence.TIER_DISK)


def test_evidence_spans_end_at_holes_and_before_the_next_unit(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0, 0.75])
    session.push([30.0, 31.0, 32.0, 33.0], gap_before=True)
    named = pb.RetrievalOptions(unit_indices=[0, 1, 2, 3, 5])
    spans = qa.ask(session.session_id, retrieval=named).evidence
    assert sorted((span.start_s, span.end_s) for span in spans) == [
        (0.0, 1.75),
        (30.0, 32.0),
        (33.0, 34.0),
    ]
    assert [span.score for span in spans] == sorted((s.score for s in spans), reverse=True)
    [span] = qa.ask(session.session_id, retrieval=pb.RetrievalOptions(unit_indices=[0])).evidence
    assert (span.start_s, span.end_s) == (0.0, 0.75)


def test_an_answer_later_as_of_a_time_equals_the_live_answer_at_that_time(
    qa: QaProcess, live: Live
) -> None:
    session = live()
    session.push([0.0, 1.0, 2.0, 3.0, 4.0])
    options = pb.RetrievalOptions(unit_count=3)
    then = qa.ask(session.session_id, retrieval=options)
    session.push([5.0, 6.0, 7.0, 8.0, 9.0])
    later = qa.ask(session.session_id, retrieval=options, asked_at_s=4.0)
    session.finish()
    much_later = qa.ask(session.session_id, retrieval=options, asked_at_s=4.5)
    for answer in (later, much_later):
        assert answer.text == then.text
        assert answer.evidence_until_s == 4.0
        assert answer.snapshot_unit_count == 5
        assert [(e.start_s, e.end_s) for e in answer.evidence] == [
            (e.start_s, e.end_s) for e in then.evidence
        ]
        assert [e.score for e in answer.evidence] == [e.score for e in then.evidence]
    assert (later.asked_at_s, much_later.asked_at_s) == (4.0, 4.5)
    now = qa.ask(session.session_id, retrieval=options)
    assert now.snapshot_unit_count == 10
    assert now.text != then.text


def test_the_cut_says_whether_the_moment_itself_belongs(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0, 1.0, 2.0])
    at = qa.ask(session.session_id, asked_at_s=1.0)
    before = qa.ask(session.session_id, asked_at_s=1.0, cut=pb.SNAPSHOT_CUT_BEFORE)
    assert (at.evidence_until_s, before.evidence_until_s) == (1.0, 0.0)


def test_a_finished_session_answers_as_of_its_end_when_asked_beyond(
    qa: QaProcess, live: Live
) -> None:
    session = live()
    session.push([0.0, 1.0])
    session.finish()
    answer = qa.ask(session.session_id, asked_at_s=100.0)
    assert (answer.asked_at_s, answer.evidence_until_s) == (100.0, 1.0)


def test_a_question_about_received_but_unseen_video_waits_for_it(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0, 1.0])
    session.stream.received(2.5, 3)
    call = qa.call(session.session_id, asked_at_s=2.25)
    waited = qa.refusal(session.session_id, asked_at_s=2.25, timeout_s=0.5)
    assert waited.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not call.done()
    session.push([2.0])
    assert finish(call).evidence_until_s == 2.0


def test_a_time_between_two_frames_does_not_wait_for_the_next(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0, 1.0])
    session.stream.received(1.5, 2)
    assert qa.ask(session.session_id, asked_at_s=1.4).evidence_until_s == 1.0


def test_choices_are_answered_by_likelihood(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0, 1.0])
    answer = qa.ask(session.session_id, choices=["a red circle", "nothing", "a blue square"])
    assert answer.finish_reason == pb.Answer.FINISH_REASON_CHOICE
    likelihoods = list(answer.choice_log_likelihoods)
    assert len(likelihoods) == 3
    assert answer.choice_index == likelihoods.index(max(likelihoods))
    assert answer.text == ["a red circle", "nothing", "a blue square"][answer.choice_index]


def test_history_changes_the_answer_and_the_next_question_does_not_remember(
    qa: QaProcess, live: Live
) -> None:
    session = live()
    session.push([0.0, 1.0])
    first = qa.ask(session.session_id)
    history = [pb.Turn(question="What colour was the circle?", answer="Green, and seen twice.")]
    assert qa.ask(session.session_id, history=history).text != first.text
    assert qa.ask(session.session_id).text == first.text


def test_questions_asked_at_once_answer_as_one_after_another(qa: QaProcess, live: Live) -> None:
    sessions = [live("a"), live("b")]
    for session in sessions:
        session.push([0.0, 1.0, 2.0])
    asked = [
        (session.session_id, question)
        for session in sessions
        for question in ("What was it?", "When did the red circle appear, and for how long?")
    ]
    decoding = sampled(24)
    alone = [qa.ask(*each, decoding=decoding).text for each in asked]
    calls = [qa.call(*each, decoding=decoding) for each in asked]
    assert [finish(call).text for call in calls] == alone
    assert len(set(alone)) == len(alone)


def test_a_cancelled_question_frees_its_place(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0])
    for _ in range(3):
        calls = [qa.call(session.session_id, decoding=sampled(4096)) for _ in range(4)]
        for call in calls:
            next(iter(call))  # it is being answered
        full = qa.refusal(session.session_id)
        assert (full.code, full.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_CALLS",
        )
        assert full.retry_after_s
        assert (full.metadata["open"], full.metadata["allowed"]) == ("4", "4")
        for call in calls:
            call.cancel()
        ask_when_free(qa, session.session_id)


def test_a_deadline_ends_the_question_and_frees_its_place(qa: QaProcess, live: Live) -> None:
    session = live()
    session.push([0.0])
    for _ in range(5):  # more than there are places
        late = qa.refusal(session.session_id, decoding=sampled(4096), timeout_s=0.5)
        assert late.code == grpc.StatusCode.DEADLINE_EXCEEDED
    ask_when_free(qa, session.session_id)


def ask_when_free(qa: QaProcess, session_id: str) -> pb.Answer:
    """Asks until the server has noticed that earlier clients are gone."""
    while True:
        try:
            return qa.ask(session_id)
        except grpc.RpcError as error:
            if Refusal.of(error).reason != "TOO_MANY_CALLS":
                raise
