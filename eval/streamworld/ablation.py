"""What each rule of retrieval is worth: the same questions, answered with it and without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from eval.streamworld.exam import make_exam
from eval.streamworld.exam_answers import as_served, graded
from eval.streamworld.exam_memory import StreamMemory, encode_stream, whole_units
from eval.streamworld.lines import resumed
from svc.engine.answer import AnswerEngine
from svc.engine.model import LoadedModel
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.serving import ServingDefaults
from svc.engine.window import WindowConfig

BASE = "per_layer"


def variants(unit_count: int) -> Mapping[str, Mapping[str, Any]]:
    """Return by name what a request says, of a model that is asked with so many units."""
    other: Mapping[str, Mapping[str, Any]] = {
        BASE: {},
        "shared": {"retrieval": "shared"},
        "agreed": {"retrieval": "agreed"},
        "mean and each token": {"pooling": "mean_and_tokens"},
        "agreed, mean and each token": {"retrieval": "agreed", "pooling": "mean_and_tokens"},
        "half the units": {"unit_count": max(1, unit_count // 2)},
        "twice the units": {"unit_count": 2 * unit_count},
        "newest not first": {"recent_unit_count": 0},
        "newest as stored": {"newest_whole": False},
        "still units searched": {"repeats_searched": True},
        "newest only": {"unit_count": 1},
    }
    return {name: {"unit_count": unit_count, **fields} for name, fields in other.items()}


VARIANTS = tuple(variants(2))


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

    Raises:
        OtherRunError: the file holds lines of another model, or of other questions.
    """
    plan = {
        "model": model.digest, "retrieved_units": defaults.retrieved_units,
        "questions_per_kind": ablation.questions_per_kind,
    }  # fmt: skip
    done = {_key(line) for line in resumed(out, plan)}
    engine = AnswerEngine(model)
    window = WindowConfig(
        window_tokens=defaults.window_tokens, window_positions=defaults.window_positions
    )
    specs = [ReductionSpec.parse(name, defaults.reduction_presets) for name in ablation.reductions]
    for seed in range(ablation.first_seed, ablation.first_seed + ablation.stream_count):
        wanted = [
            (spec, variant)
            for spec in dict.fromkeys(specs)
            for variant in dict.fromkeys([BASE, *ablation.variants])
            if (ablation.duration_s, seed, str(spec), variant) not in done
        ]
        if not wanted:
            continue
        exam = make_exam(
            seed=seed, duration_s=ablation.duration_s, fps=Fraction(1),
            questions_per_kind=ablation.questions_per_kind,
        )  # fmt: skip
        units = whole_units(model, exam)
        for spec in dict.fromkeys(spec for spec, _ in wanted):
            stream = encode_stream(model, window, units, spec)
            memory = StreamMemory(stream=stream, index=stream.rows, unit_count=0)
            for variant in [name for each, name in wanted if each == spec]:
                fields = {**as_served(spec), **variants(defaults.retrieved_units)[variant]}
                line = {
                    "plan": plan, "duration_s": ablation.duration_s, "seed": seed,
                    "reduction": str(spec), "variant": variant,
                    "questions": list(graded(engine, memory, exam.questions, fields)),
                }  # fmt: skip
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        yield f"{ablation.duration_s:g} s, seed {seed}"


def _key(line: Mapping[str, Any]) -> tuple[float, int, str, str]:
    return line["duration_s"], line["seed"], line["reduction"], line["variant"]
