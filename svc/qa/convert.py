"""Wire messages to questions, with every check of what a client sends; answers to messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvstore.geometry import Tier
from lookback.v1 import question_pb2 as pb
from svc.engine import answer_request as engine
from svc.engine.answer_request import AnswerLimits, AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.qa.as_of import Cut
from svc.qa.errors import invalid_field
from svc.qa.evidence import CoarsenedSpan, EvidenceSpan, LostSpan
from svc.rpc.errors import Reason, RequestError

T = TypeVar("T")

MAX_QUESTION_CHARS = 8_000
MAX_CHOICE_CHARS = 1_000
MAX_REPORTED_UNITS = 1_024
_DEFAULT_NEW_TOKENS = 64

_CUTS: dict[int, Cut] = {
    pb.SNAPSHOT_CUT_UNSPECIFIED: "at_or_before",
    pb.SNAPSHOT_CUT_AT_OR_BEFORE: "at_or_before",
    pb.SNAPSHOT_CUT_BEFORE: "before",
}
_MODES: dict[int, engine.Retrieval] = {
    pb.RETRIEVAL_MODE_UNSPECIFIED: "per_layer",
    pb.RETRIEVAL_MODE_PER_LAYER: "per_layer",
    pb.RETRIEVAL_MODE_SHARED: "shared",
    pb.RETRIEVAL_MODE_AGREED: "agreed",
}
_FINISH_REASONS = {
    "stop": pb.Answer.FINISH_REASON_STOP,
    "length": pb.Answer.FINISH_REASON_LENGTH,
    "choice": pb.Answer.FINISH_REASON_CHOICE,
}
_TIERS = {
    Tier.HOT: pb.Evidence.TIER_HOT,
    Tier.RAM: pb.Evidence.TIER_RAM,
    Tier.DISK: pb.Evidence.TIER_DISK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question whose form is right; whether the session can answer it is still open."""

    session_id: str
    asked_at_s: float | None
    """Time in the stream; None: everything visible now."""
    cut: Cut
    request: AnswerRequest
    """With all turns of the conversation; see `history_until_s`."""
    history_until_s: tuple[float | None, ...] = ()
    """Per turn how far its answer saw; None: it is not said, and the turn is taken as it is."""
    report_units_read: bool = False
    """Whether the answer is to say which units each layer read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A finished answer with what the process knows about it beside the engine's result."""

    result: AnswerResult
    evidence: Sequence[EvidenceSpan]
    coarsened: Sequence[CoarsenedSpan]
    """What it used that had been thinned."""
    lost: Sequence[LostSpan]
    """What was chosen and could not be read."""
    evidence_until_s: float
    remembers_from_s: float | None
    """Start of the first unit that was not dropped; None: nothing was."""
    held_unit_count: int
    """Units of the snapshot that were not dropped."""
    units_read: Sequence[NDArray[np.int64]]
    """Per layer the units it read, where the question asked for them, else empty."""
    asked_at_s: float
    ttft_s: float
    total_s: float
    model: str


def parse_question(
    message: pb.AskRequest, *, default_unit_count: int, limits: AnswerLimits
) -> Question:
    """Returns the question that a message asks.

    Raises:
        RequestError: INVALID_REQUEST or QUESTION_INVALID, naming the field and what is allowed.
    """
    if not message.session_id:
        raise invalid_field("session_id", "", "given")
    _check_texts(message)
    asked_at_s = message.asked_at_s if message.HasField("asked_at_s") else None
    if asked_at_s is not None and not math.isfinite(asked_at_s):
        raise invalid_field("asked_at_s", asked_at_s, "finite")
    cut = _known(_CUTS, "cut", message.cut)
    if cut == "before" and asked_at_s is None:
        raise invalid_field("cut", "before", "absent where asked_at_s is")
    request = AnswerRequest(
        question=message.question,
        history=tuple((turn.question, turn.answer) for turn in message.history),
        choices=tuple(message.choices),
        **_retrieval(message.retrieval, default_unit_count),
        **_decoding(message.decoding),
    )
    try:
        request.check(limits)
    except engine.RequestError as error:
        raise invalid_field(error.field, error.given, error.allowed) from error
    if message.report_units_read:
        _check_reportable(request)
    return Question(
        session_id=message.session_id,
        asked_at_s=asked_at_s,
        cut=cut,
        request=request,
        history_until_s=_history_until_s(message),
        report_units_read=message.report_units_read,
    )


def delta_message(text: str) -> pb.AskResponse:
    """Returns the message that carries more text."""
    return pb.AskResponse(delta=pb.TextDelta(text=text))


def answer_message(answered: Answered) -> pb.AskResponse:
    """Returns the last message of an answer."""
    result = answered.result
    answer = pb.Answer(
        text=result.text,
        finish_reason=_FINISH_REASONS[result.finish_reason],
        choice_index=result.choice_index,
        choice_log_likelihoods=result.choice_log_likelihoods,
        evidence=[_evidence_message(span) for span in answered.evidence],
        evidence_until_s=answered.evidence_until_s,
        asked_at_s=answered.asked_at_s,
        retrieved_unit_count=result.context_unit_count,
        retrieved_token_count=result.context_token_count,
        prompt_token_count=result.prompt_token_count,
        answer_token_count=len(result.token_ids),
        ttft_s=answered.ttft_s,
        total_s=answered.total_s,
        model=answered.model,
        snapshot_unit_count=answered.held_unit_count,
        remembers_from_s=answered.remembers_from_s,
        evidence_lost=[_lost_message(span) for span in answered.lost],
        evidence_coarsened=[_coarsened_message(span) for span in answered.coarsened],
        history_turn_count=result.history_turn_count,
        units_read=[pb.LayerUnits(unit_indices=units.tolist()) for units in answered.units_read],
    )
    return pb.AskResponse(answer=answer)


def _evidence_message(span: EvidenceSpan) -> pb.Evidence:
    return pb.Evidence(
        start_s=span.start_s,
        end_s=span.end_s,
        score=span.score,
        tier=_TIERS[span.tier],
        coarsened=span.coarsened,
    )


def _coarsened_message(span: CoarsenedSpan) -> pb.CoarsenedEvidence:
    return pb.CoarsenedEvidence(
        start_s=span.start_s,
        end_s=span.end_s,
        first_unit_index=span.first_unit_index,
        unit_count=span.unit_count,
        token_count=span.token_count,
        whole_token_count=span.whole_token_count,
    )


def _lost_message(span: LostSpan) -> pb.LostEvidence:
    reason = (
        pb.LostEvidence.REASON_UNREADABLE if span.unreadable else pb.LostEvidence.REASON_CHECKSUM
    )
    return pb.LostEvidence(
        start_s=span.start_s,
        end_s=span.end_s,
        first_unit_index=span.first_unit_index,
        unit_count=span.unit_count,
        reason=reason,
        first_layer_index=span.first_layer_index,
    )


def _check_texts(message: pb.AskRequest) -> None:
    question_chars = len(message.question)
    if not message.question.strip():
        raise RequestError(Reason.QUESTION_INVALID, "the question is empty", field="question")
    if question_chars > MAX_QUESTION_CHARS:
        raise RequestError(
            Reason.QUESTION_INVALID,
            f"the question has {question_chars} characters, allowed are {MAX_QUESTION_CHARS}",
            field="question",
            given=question_chars,
            allowed=MAX_QUESTION_CHARS,
        )
    if len(message.choices) == 1:
        raise invalid_field("choices", 1, "absent, or at least 2")
    for index, choice in enumerate(message.choices):
        if not choice.strip() or len(choice) > MAX_CHOICE_CHARS:
            raise invalid_field(
                f"choices[{index}]", choice, f"1 to {MAX_CHOICE_CHARS} characters, not blank"
            )


def _check_reportable(request: AnswerRequest) -> None:
    """A message has a limit, and layers read up to so many units each."""
    asked = len(request.unit_indices or ()) or request.unit_count
    if asked > MAX_REPORTED_UNITS:
        raise invalid_field(
            "report_units_read",
            f"{asked} units in context",
            f"with at most {MAX_REPORTED_UNITS:,} units",
        )


def _history_until_s(message: pb.AskRequest) -> tuple[float | None, ...]:
    """Returns how far each turn's answer saw."""
    found: list[float | None] = []
    for index, turn in enumerate(message.history):
        given = turn.HasField("evidence_until_s")
        if given and not math.isfinite(turn.evidence_until_s):
            field = f"history[{index}].evidence_until_s"
            raise invalid_field(field, turn.evidence_until_s, "finite")
        found.append(turn.evidence_until_s if given else None)
    return tuple(found)


def _retrieval(options: pb.RetrievalOptions, default_unit_count: int) -> dict[str, Any]:
    """Returns the fields of AnswerRequest that say what is read from memory."""
    given = [field.name for field, _ in options.ListFields()]
    if options.unit_indices:
        others = [name for name in given if name != "unit_indices"]
        if others:
            raise invalid_field(", ".join(others), "given", "absent where unit_indices are given")
        return {"unit_indices": tuple(options.unit_indices)}
    for name in ("unit_count", "token_count", "recent_unit_count"):
        if getattr(options, name) < 0:
            raise invalid_field(name, getattr(options, name), ">= 0")
    unit_count = options.unit_count or default_unit_count
    recent_given = options.HasField("recent_unit_count")
    return {
        "retrieval": _known(_MODES, "mode", options.mode),
        "pooling": "mean_and_tokens" if options.search_each_token else "mean",
        "unit_count": unit_count,
        "token_count": options.token_count or None,
        "recent_unit_count": options.recent_unit_count if recent_given else 1,
    }


def _decoding(options: pb.DecodingOptions) -> dict[str, Any]:
    """Returns the fields of AnswerRequest that say how text is decoded."""
    given = {field.name: value for field, value in options.ListFields()}
    optional = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
    return {
        "max_new_tokens": options.max_new_token_count or _DEFAULT_NEW_TOKENS,
        **{name: given[name] for name in optional if name in given},
        "stop": tuple(options.stop),
        "ignore_eos": options.ignore_eos,
    }


def _known(names: dict[int, T], field: str, value: int) -> T:
    if value not in names:
        raise invalid_field(field, value, "a value this server knows")
    return names[value]
