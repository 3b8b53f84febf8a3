"""What a client may send, field by field, and what becomes of it."""

import math
from typing import Any

import pytest

from lookback.v1 import question_pb2 as pb
from svc.engine.answer_request import AnswerLimits
from svc.qa.convert import Question, parse_question
from svc.rpc.errors import Reason, RequestError

SOMETHING = {"session_id": "door", "question": "What is it?"}


def parse(**fields: Any) -> Question:
    message = pb.AskRequest(**{**SOMETHING, **fields})
    return parse_question(message, default_unit_count=7, limits=AnswerLimits())


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    return caught.value


def test_absent_fields_take_the_defaults() -> None:
    question = parse()
    assert question.asked_at_s is None
    assert question.cut == "at_or_before"
    request = question.request
    assert (request.unit_count, request.recent_unit_count, request.token_count) == (7, 1, None)
    assert (request.max_new_tokens, request.temperature, request.seed) == (64, None, None)
    assert request.retrieval == "per_layer"


def test_given_fields_arrive() -> None:
    question = parse(
        asked_at_s=0.0,
        cut=pb.SNAPSHOT_CUT_BEFORE,
        choices=["a", "b"],
        history=[pb.Turn(question="q", answer="a"), pb.Turn(answer="b", evidence_until_s=0.0)],
        retrieval=pb.RetrievalOptions(
            mode=pb.RETRIEVAL_MODE_SHARED, unit_count=3, token_count=50, recent_unit_count=0
        ),
        decoding=pb.DecodingOptions(
            max_new_token_count=5,
            temperature=0.0,
            top_p=0.5,
            top_k=0,
            repetition_penalty=1.5,
            seed=-1,
            stop=["\n"],
            ignore_eos=True,
        ),
    )
    assert question.asked_at_s == 0.0
    assert question.cut == "before"
    request = question.request
    assert request.choices == ("a", "b")
    assert request.history == (("q", "a"), ("", "b"))
    assert question.history_until_s == (None, 0.0)
    assert request.retrieval == "shared"
    assert (request.unit_count, request.recent_unit_count, request.token_count) == (3, 0, 50)
    assert (request.max_new_tokens, request.temperature, request.top_p) == (5, 0.0, 0.5)
    assert (request.top_k, request.repetition_penalty, request.seed) == (0, 1.5, -1)
    assert (request.stop, request.ignore_eos) == (("\n",), True)


def test_how_units_are_chosen_arrives() -> None:
    assert parse().request.pooling == "mean"
    asked = pb.RetrievalOptions(mode=pb.RETRIEVAL_MODE_AGREED, search_each_token=True)
    request = parse(retrieval=asked).request
    assert (request.retrieval, request.pooling) == ("agreed", "mean_and_tokens")


def test_units_by_name_leave_no_other_retrieval_option() -> None:
    assert parse(retrieval=pb.RetrievalOptions(unit_indices=[0, 4])).request.unit_indices == (0, 4)
    mixed = pb.RetrievalOptions(unit_indices=[0], recent_unit_count=0)
    assert "absent where unit_indices" in str(refusal(retrieval=mixed))


@pytest.mark.parametrize("question", ["", " \n\t", "x" * 8001])
def test_a_question_has_between_1_and_8000_characters(question: str) -> None:
    assert refusal(question=question).reason is Reason.QUESTION_INVALID


def test_the_longest_question_passes() -> None:
    assert parse(question="é" * 8000).request.question == "é" * 8000


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("session_id", {"session_id": ""}),
        ("asked_at_s", {"asked_at_s": math.nan}),
        ("asked_at_s", {"asked_at_s": math.inf}),
        ("cut", {"cut": 9}),
        ("cut", {"cut": pb.SNAPSHOT_CUT_BEFORE}),
        ("choices", {"choices": ["only"]}),
        ("choices[1]", {"choices": ["a", " "]}),
        ("choices[0]", {"choices": ["a" * 1001, "b"]}),
        ("choices", {"choices": ["a"] * 27}),
        ("history", {"history": [pb.Turn(question="q", answer="a")] * 33}),
        ("history[0].evidence_until_s", {"history": [pb.Turn(evidence_until_s=math.nan)]}),
        ("characters of history", {"history": [pb.Turn(question="q" * 64_001)]}),
        ("mode", {"retrieval": pb.RetrievalOptions(mode=9)}),  # type: ignore[arg-type]
        ("unit_count", {"retrieval": pb.RetrievalOptions(unit_count=-1)}),
        ("unit_count", {"retrieval": pb.RetrievalOptions(unit_count=65_537)}),
        ("token_count", {"retrieval": pb.RetrievalOptions(token_count=-1)}),
        ("recent_unit_count", {"retrieval": pb.RetrievalOptions(recent_unit_count=-1)}),
        ("recent_unit_count", {"retrieval": pb.RetrievalOptions(recent_unit_count=8)}),
        ("unit_indices", {"retrieval": pb.RetrievalOptions(unit_indices=[1, 1])}),
        (
            "report_units_read",
            {
                "report_units_read": True,
                "retrieval": pb.RetrievalOptions(unit_indices=list(range(1025))),
            },
        ),
        (
            "report_units_read",
            {"report_units_read": True, "retrieval": pb.RetrievalOptions(unit_count=1025)},
        ),
        ("max_new_tokens", {"decoding": pb.DecodingOptions(max_new_token_count=-1)}),
        ("max_new_tokens", {"decoding": pb.DecodingOptions(max_new_token_count=4097)}),
        ("temperature", {"decoding": pb.DecodingOptions(temperature=-0.1)}),
        ("temperature", {"decoding": pb.DecodingOptions(temperature=math.nan)}),
        ("temperature", {"decoding": pb.DecodingOptions(temperature=10.1)}),
        ("top_p", {"decoding": pb.DecodingOptions(top_p=0.0)}),
        ("top_p", {"decoding": pb.DecodingOptions(top_p=1.1)}),
        ("top_k", {"decoding": pb.DecodingOptions(top_k=-1)}),
        ("repetition_penalty", {"decoding": pb.DecodingOptions(repetition_penalty=0.0)}),
        ("stop", {"decoding": pb.DecodingOptions(stop=["."] * 17)}),
        ("length of a stop string", {"decoding": pb.DecodingOptions(stop=[""])}),
        ("length of a stop string", {"decoding": pb.DecodingOptions(stop=["x" * 201])}),
    ],
)
def test_what_lies_outside_the_limits_is_refused_by_name(
    field: str, fields: dict[str, Any]
) -> None:
    error = refusal(**fields)
    assert error.reason is Reason.INVALID_REQUEST
    assert error.metadata["field"] == field
    assert error.metadata["allowed"] in str(error)
