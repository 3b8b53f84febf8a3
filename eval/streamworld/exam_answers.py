"""Questions of an exam, answered in this process as of the times at which they are asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eval.streamworld.exam import Question
from eval.streamworld.exam_memory import StreamMemory
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.reduction.spec import ReductionSpec

_FPS = 1.0
_ANSWERS_IN_A_ROW = 16
_MAX_NEW_TOKENS = 8


def as_served(reduction: ReductionSpec) -> dict[str, Any]:
    """Return the fields of AnswerRequest that the service sets by a session's reduction."""
    return {
        "newest_whole": reduction.drops_repeats,
        "repeats_searched": not reduction.drops_repeats,
    }


def graded(
    engine: AnswerEngine,
    memory: StreamMemory,
    questions: Sequence[Question],
    fields: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield of each question its kind, whether it was answered right, and what layers read.

    Args:
        engine: answers, several questions a pass.
        memory: the stream, one unit a second; each question sees what is up to its own time.
        questions: asked greedily.
        fields: of AnswerRequest, beside the question.
    """
    for start in range(0, len(questions), _ANSWERS_IN_A_ROW):
        asked = questions[start : start + _ANSWERS_IN_A_ROW]
        for question, result in zip(asked, _answers(engine, memory, asked, fields), strict=True):
            yield {
                "kind": question.kind,
                "drift": question.drift,
                "right": result.text.strip() == question.answer,
                "found": _found(question, result),
                "units": float(np.mean([len(units) for units in result.layer_units])),
            }


def _answers(
    engine: AnswerEngine,
    memory: StreamMemory,
    questions: Sequence[Question],
    fields: Mapping[str, Any],
) -> list[AnswerResult]:
    answers = [
        engine.start(
            AnswerRequest(
                question=question.text,
                temperature=0.0,
                max_new_tokens=_MAX_NEW_TOKENS,
                **fields,
            ),
            StreamMemory(
                stream=memory.stream,
                index=memory.index,
                unit_count=round(question.asked_at_s * _FPS) + 1,
            ),
        )
        for question in questions
    ]
    while not all(answer.finished for answer in answers):
        engine.step(answers)
    results: list[AnswerResult] = []
    for answer in answers:
        if answer.result is None:
            raise answer.error or RuntimeError("an answer ended without a result")
        results.append(answer.result)
    return results


def _found(question: Question, result: AnswerResult) -> float | None:
    """Return the share of the evidence's spans that a layer read a unit of, mean of the layers."""
    if not question.evidence_s:
        return None
    spans = np.array(question.evidence_s) * _FPS
    shares = [
        np.mean([np.any((units >= start) & (units < end)) for start, end in spans])
        for units in result.layer_units
    ]
    return float(np.mean(shares))
