"""What each rule of retrieval is worth: the same questions, answered with it and without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from eval.streamworld.exam import Question, make_exam
from eval.streamworld.exam_memory import StreamMemory, encode_stream, whole_units
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.model import LoadedModel
from svc.engine.serving import ServingDefaults
from svc.engine.window import WindowConfig

BASE = "per_layer"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    BASE: {},
    "shared": {"retrieval": "shared"},
    "agreed": {"retrieval": "agreed"},
    "mean and each token": {"pooling": "mean_and_tokens"},
    "agreed, mean and each token": {"retrieval": "agreed", "pooling": "mean_and_tokens"},
    "half the units": {"unit_count": 4},
    "twice the units": {"unit_count": 16},
    "newest not first": {"recent_unit_count": 0},
    "newest as stored": {"newest_whole": False},
    "newest only": {"unit_count": 1},
}
"""By name: what a request says in place of the defaults."""

_FPS = Fraction(1)
_ANSWERS_IN_A_ROW = 16
_MAX_NEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Which streams, encoded how, and which variants answer their questions."""

    first_seed: int
    stream_count: int
    duration_s: float
    questions_per_kind: int
    reductions: Sequence[str]
    variants: Sequence[str]


def run(
    ablation: Ablation, model: LoadedModel, defaults: ServingDefaults, out: Path
) -> Iterator[str]:
    """Append a line to `out` for each stream, reduction and variant it lacks; yield what is done.

    A line holds the questions of one stream; equal arguments give equal lines.
    """
    done = {_key(line) for line in _resumed(out)}
    engine = AnswerEngine(model)
    window = WindowConfig(
        window_tokens=defaults.window_tokens, window_positions=defaults.window_positions
    )
    for seed in range(ablation.first_seed, ablation.first_seed + ablation.stream_count):
        wanted = [
            (reduction, variant)
            for reduction in ablation.reductions
            for variant in ablation.variants
            if (ablation.duration_s, seed, reduction, variant) not in done
        ]
        if not wanted:
            continue
        exam = make_exam(
            seed=seed, duration_s=ablation.duration_s, fps=_FPS,
            questions_per_kind=ablation.questions_per_kind,
        )  # fmt: skip
        units = whole_units(model, exam)
        for reduction in dict.fromkeys(reduction for reduction, _ in wanted):
            stream = encode_stream(model, window, units, reduction)
            memory = StreamMemory(stream=stream, index=stream.rows, unit_count=0)
            for variant in [name for each, name in wanted if each == reduction]:
                fields = {"unit_count": defaults.retrieved_units} | dict(VARIANTS[variant])
                line = {
                    "duration_s": ablation.duration_s, "seed": seed, "reduction": reduction,
                    "variant": variant,
                    "questions": list(_graded(engine, memory, exam.questions, fields)),
                }  # fmt: skip
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        yield f"{ablation.duration_s:g} s, seed {seed}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; a last one that was cut off is left out."""
    return [json.loads(text) for text in path.read_bytes().split(b"\n")[:-1]]


def _resumed(out: Path) -> list[dict[str, Any]]:
    """Return the lines of an earlier run, and cut off what it had not finished writing."""
    if not out.exists():
        return []
    with out.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    return read_lines(out)


def _key(line: Mapping[str, Any]) -> tuple[float, int, str, str]:
    return line["duration_s"], line["seed"], line["reduction"], line["variant"]


def _graded(
    engine: AnswerEngine,
    memory: StreamMemory,
    questions: Sequence[Question],
    fields: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(questions), _ANSWERS_IN_A_ROW):
        asked = questions[start : start + _ANSWERS_IN_A_ROW]
        for question, result in zip(asked, _answers(engine, memory, asked, fields), strict=True):
            yield {
                "kind": question.kind,
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
    spans = np.array(question.evidence_s) * float(_FPS)
    shares = [
        np.mean([np.any((units >= start) & (units < end)) for start, end in spans])
        for units in result.layer_units
    ]
    return float(np.mean(shares))
