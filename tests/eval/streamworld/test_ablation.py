"""The harness of ablations: no leak of the future, lines that resume, intervals that are right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.streamworld.ablation import BASE, VARIANTS, Ablation, run, variants
from eval.streamworld.ablation_table import paired_interval, table
from eval.streamworld.exam import make_exam
from eval.streamworld.exam_memory import EncodedStream, StreamMemory, encode_stream, whole_units
from eval.streamworld.lines import OtherRunError, read_lines
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.model import LoadedModel, load_model
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.serving import ServingDefaults, model_config, serving_defaults
from svc.engine.window import WindowConfig

CUT = 60


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(model_config("builtin", "float32", "cpu"), vision=True)


@pytest.fixture(scope="module")
def defaults() -> ServingDefaults:
    return serving_defaults(model_config("builtin", "float32", "cpu"))


@pytest.fixture(scope="module")
def stream(model: LoadedModel, defaults: ServingDefaults) -> EncodedStream:
    exam = make_exam(seed=5, duration_s=120)
    window = WindowConfig(
        window_tokens=defaults.window_tokens, window_positions=defaults.window_positions
    )
    return encode_stream(
        model, window, whole_units(model, exam), ReductionSpec.parse("last_kept:0.7")
    )


def ended_at(stream: EncodedStream, unit_count: int) -> EncodedStream:
    token_count = int(stream.token_counts[:unit_count].sum())
    return EncodedStream(
        keys=stream.keys[:, :token_count],
        values=stream.values[:, :token_count],
        cells=stream.cells[:token_count],
        layout=stream.layout,
        token_counts=stream.token_counts[:unit_count],
        position_span=stream.position_span,
        all_places=stream.all_places,
    )


def answered(model: LoadedModel, stream: EncodedStream, fields: Any) -> AnswerResult:
    engine = AnswerEngine(model)
    request = AnswerRequest(question="Which came first, the circle or the star?", **fields)
    memory = StreamMemory(stream=stream, index=stream.rows, unit_count=CUT)
    answer = engine.start(request, memory)
    while not answer.finished:
        engine.step([answer])
    assert answer.result is not None, answer.error
    return answer.result


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_knows_what_came_after_the_question(
    variant: str, model: LoadedModel, stream: EncodedStream
) -> None:
    assert len(stream.token_counts) > CUT
    now, then = (
        answered(model, each, {"temperature": 0.0} | dict(variants(8)[variant]))
        for each in (stream, ended_at(stream, CUT))
    )
    assert now.token_ids == then.token_ids
    for own, its in zip(now.layer_units, then.layer_units, strict=True):
        assert own.tolist() == its.tolist()
        assert own.max(initial=0) < CUT
    np.testing.assert_array_equal(now.unit_scores, then.unit_scores)


def test_a_run_goes_on_where_it_was_cut_off(
    model: LoadedModel, defaults: ServingDefaults, tmp_path: Path
) -> None:
    out = tmp_path / "lines.jsonl"
    ablation = Ablation(
        first_seed=7, stream_count=1, duration_s=120.0, questions_per_kind=1,
        reductions=["none"], variants=["newest only"],  # the base comes by itself
    )  # fmt: skip
    assert len(list(run(ablation, model, defaults, out))) == 1
    whole = out.read_bytes()
    assert [line["variant"] for line in read_lines(out)] == [BASE, "newest only"]
    assert list(run(ablation, model, defaults, out)) == []
    out.write_bytes(whole[:-100])
    assert [line["variant"] for line in read_lines(out)] == [BASE]
    assert len(list(run(ablation, model, defaults, out))) == 1
    assert out.read_bytes() == whole
    with pytest.raises(OtherRunError, match="questions_per_kind 1, this one has 2"):
        list(run(replace(ablation, questions_per_kind=2), model, defaults, out))


def test_a_preset_means_what_it_means_in_the_service(
    model: LoadedModel, defaults: ServingDefaults, tmp_path: Path
) -> None:
    out = tmp_path / "lines.jsonl"
    ablation = Ablation(
        first_seed=7, stream_count=1, duration_s=120.0, questions_per_kind=1,
        reductions=["last_kept:light", "last_kept:0.95"], variants=[BASE],
    )  # fmt: skip
    assert len(list(run(ablation, model, defaults, out))) == 1
    assert [line["reduction"] for line in read_lines(out)] == ["last_kept:0.95"]


def test_an_interval_is_of_streams_and_not_of_their_questions() -> None:
    alike = [np.zeros(50), np.ones(50)]
    mean, low, high = paired_interval(alike)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    mean, low, high = paired_interval([np.array([0.0, 1.0])] * 40)
    assert mean == low == high == 0.5


def line(variant: str, seed: int, rights: list[bool]) -> dict[str, Any]:
    questions = [{"kind": "count", "right": right, "found": 0.5, "units": 8.0} for right in rights]
    fields = {"duration_s": 300.0, "seed": seed, "reduction": "none", "variant": variant}
    return json.loads(json.dumps(fields | {"questions": questions}))


def test_a_table_pairs_only_streams_that_both_answered() -> None:
    text = table(
        [
            line(BASE, 1, [True, False]),
            line(BASE, 2, [False, False]),
            line("shared", 1, [True, True]),
        ],
        BASE,
    )
    assert f"| {BASE} | - | - | - | 0.250 |" in text
    assert "| 1.000 +0.500 [+0.50, +0.50] |" in text
