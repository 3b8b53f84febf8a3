"""The benchmark run: what it asks, what it keeps, and that its report follows from its rows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from eval.streamworld.benchmark import refuse_other
from eval.streamworld.claims import claim_rows
from eval.streamworld.curves import (
    AS_SERVED,
    CURVES,
    RECOMMENDED,
    REFERENCE,
    Arm,
    BenchmarkPlan,
    arms,
    left_the_window,
    tasks,
)
from eval.streamworld.exam import make_exam
from eval.streamworld.modes import Mode
from eval.streamworld.paired import PairedDifference, paired_difference
from eval.streamworld.report_figures import report_of
from eval.streamworld.report_page import page
from eval.streamworld.report_plots import pareto_front
from eval.streamworld.report_rows import benchmark_rows
from eval.streamworld.results_file import ResultsError, ResultsFile, Row
from eval.streamworld.scenarios import PAST_KINDS, SCENARIOS
from eval.streamworld.wording import NOW_KINDS
from svc.engine.reduction.spec import ReductionSpec

PLAN = BenchmarkPlan(durations_s=(300,), long_durations_s=(300,), questions_per_kind=1)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, table II, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        # Correlated: the numerator of phi is 20 * 16 - 12 * 2, less half of the questions.
        ((20, 12, 2, 16), 0.0562, 0.3292),
        # No question tells them apart: Wilson's interval of 29 of 29, joined without correlation.
        ((29, 0, 0, 0), -0.1170, 0.1170),
    ],
)
def test_paired_intervals_are_newcombes(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    assert PairedDifference(*table).interval == pytest.approx((low, high), abs=1e-4)


def test_only_questions_that_both_answered_are_compared() -> None:
    first = {1: True, 2: True, 3: False, 4: True}
    second = {1: True, 2: False, 3: False, 5: True}
    found = paired_difference(first, second)
    assert (found.both, found.first_only, found.second_only, found.neither) == (1, 1, 0, 1)
    swapped = paired_difference(second, first)
    assert swapped.value == -found.value
    assert swapped.interval == pytest.approx(tuple(-bound for bound in found.interval[::-1]))


def test_each_curve_varies_one_thing_beside_the_reference() -> None:
    other = PLAN.streams(mixed_count=2)[1]
    (long,) = PLAN.streams(long_count=1)
    for curve in CURVES:
        of_curve = arms((curve,), other)
        assert of_curve[0] == REFERENCE
        if curve == "reduction":
            assert {arm.encoding for arm in of_curve} == {"model"}
        elif curve == "pareto":
            encoded = [arm for arm in of_curve if arm.encoding != "model"]
            policies = {"none", *(f"last_kept:{p}" for p in ("light", "balanced", "aggressive"))}
            for encoding in ("int8", "int4"):
                assert {a.reduction for a in encoded if a.encoding == encoding} == policies
            assert policies < {arm.reduction for arm in of_curve if arm.encoding == "model"}
        else:
            assert of_curve == [REFERENCE]
    assert arms(CURVES, long) == [REFERENCE]
    dtd = Arm(reduction="dtd:light", encoding="model")
    assert {task.asking for task in tasks(PLAN, CURVES, other, dtd)} == {AS_SERVED}
    modes = {task.asking.mode for task in tasks(PLAN, CURVES, long, REFERENCE)}
    assert modes == set(Mode)


def test_what_is_asked_alone_is_one_streams_questions_of_every_arm_and_every_mode() -> None:
    first, second = PLAN.streams(mixed_count=2)
    assert arms(("quiet",), first) == arms(("pareto",), first)
    assert not list(tasks(PLAN, ("quiet",), second, REFERENCE))
    questions = len(PLAN.exam(first).questions)
    alone = [task.asking for task in tasks(PLAN, ("quiet",), first, REFERENCE)]
    assert all(asking.alone for asking in alone)
    assert len(alone) == questions * len(Mode)
    other = Arm(reduction="none", encoding="int8")
    assert len(list(tasks(PLAN, ("quiet",), first, other))) == questions


def test_selection_asks_each_question_in_every_mode_once_nothing_of_it_is_in_the_window() -> None:
    streams = PLAN.streams(selection_count=10)
    assert {stream.scenario for stream in streams} == set(SCENARIOS)
    assert [stream.scenario for stream in streams[::2]] == ["plain"] * 5
    asked = [task for s in streams for task in tasks(PLAN, ("selection",), s, REFERENCE)]
    by_mode = {
        mode: [(t.stream.name, t.number) for t in asked if t.asking.mode is mode] for mode in Mode
    }
    whole = set(by_mode[Mode.RETRIEVAL])
    assert all(set(by_mode[mode]) == whole for mode in Mode if mode is not Mode.ALL)
    assert 0.2 < len(by_mode[Mode.ALL]) / len(whole) < 0.3
    newest_s = [
        task.question.asked_at_s - (end - 1)
        for task in asked
        if task.question.kind not in NOW_KINDS
        for _, end in task.question.evidence_s
    ]
    # The window of a unit is itself and the 15 before it.
    assert min(newest_s) >= 16
    assert max(newest_s) > 200
    static = next(stream for stream in streams if stream.scenario == "static")
    assert len(PLAN.exam(static).questions) > sum(name == static.name for name, _ in whole)


def test_evidence_has_left_the_window_when_16_units_came_after_it() -> None:
    question = next(q for q in make_exam(seed=1, duration_s=300).questions if q.kind == "order")
    for kind, asked_at_s, left in (
        ("order", 31.0, False),  # units 16 to 31 are the window: 15 + 1 back
        ("order", 32.0, True),
        ("now_what", 31.0, True),
    ):
        asked = replace(question, kind=kind, evidence_s=((3.0, 9.0), (14.0, 17.0)))  # type: ignore[arg-type]
        assert left_the_window(replace(asked, asked_at_s=asked_at_s)) is left
    assert left_the_window(replace(question, kind="not_seen", evidence_s=(), asked_at_s=5.0))


def test_a_longer_run_begins_with_a_shorter_one() -> None:
    def keys(plan: BenchmarkPlan, mixed: int, long: int, chosen: int) -> set[tuple[object, ...]]:
        streams = plan.streams(mixed_count=mixed, long_count=long, selection_count=chosen)
        return {
            task.key
            for stream in streams
            for arm in arms(CURVES, stream)
            for task in tasks(plan, CURVES, stream, arm)
        }

    assert keys(PLAN, 1, 1, 1) < keys(PLAN, 3, 2, 2)
    assert BenchmarkPlan(seed=1).digest != BenchmarkPlan(seed=2).digest


def test_streams_of_all_kinds_and_neighbouring_seeds_differ() -> None:
    plans = [
        BenchmarkPlan(seed=seed, durations_s=(300,), long_durations_s=(300,)) for seed in range(3)
    ]
    clips = {
        plan.exam(stream).clip.image_of
        for plan in plans
        for stream in plan.streams(mixed_count=2, long_count=2, selection_count=2)
    }
    assert len(clips) == 3 * 6


def test_rows_that_were_cut_short_are_dropped_and_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with ResultsFile(path, "p") as results:
        results.append({"row": "answer", "key": ("s", "a", 0)})
        results.append({"row": "answer", "key": ("s", "a", 1)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with ResultsFile(path, "p") as results:
        assert results.has("answer", ("s", "a", 0))
        assert not results.has("answer", ("s", "a", 1))
        results.append({"row": "answer", "key": ("s", "a", 1)})
    assert path.read_bytes() == whole
    with ResultsFile(path, "another plan") as results:
        assert results.rows == []


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("a,b,c\n1,2,3\n")
    with pytest.raises(ResultsError, match=r"answers\.jsonl:1"):
        ResultsFile(path, "p")
    assert path.read_text() == "a,b,c\n1,2,3\n"


def answer(stream: str, number: int, right: bool, **more: object) -> Row:
    base: Row = {
        "row": "answer", "plan": "p", "stream": stream, "scenario": "plain", "arm": "none/model",
        "number": number, "mode": "retrieval", "budget": 8, "form": "free", "kind": "past_colour",
        "drift": "", "right": right, "age_s": 70.0, "recall": 1.0, "ttft_s": 0.01, "tokens": 72,
        "alone": False, "layer_recall": None, "snapshot_units": 300,
    }  # fmt: skip
    return {**base, **more}


def stored(arm: str, tokens: int) -> Row:
    return {
        "row": "stream", "plan": "p", "stream": "mixed-000", "arm": arm, "duration_s": 1800,
        "tokens": tokens, "disk_bytes": 2 * tokens, "model": "m", "reduction_in_force": arm[:-6],
        "encoding_in_force": "model",
    }  # fmt: skip


ROWS: list[Row] = [
    stored("none/model", 1000),
    stored("dtd:0.9/model", 400),
    *(answer("mixed-000", i, True) for i in range(4)),
    *(answer("mixed-000", i, i > 0, arm="dtd:0.9/model") for i in range(4)),
    *(answer("mixed-000", i, i > 1, budget=2, tokens=18) for i in range(4)),
    answer("mixed-000", 9, True, kind="now_colour", age_s=-1.0),
    answer("mixed-000", 0, False, form="choice"),
    *(
        answer("mixed-000", i, True, alone=True, ttft_s=0.001 * i, arm=arm)
        for i, arm in enumerate(["none/model"] * 3 + ["dtd:0.9/model"])
    ),
    *(answer("long-000", i, True, age_s=age) for i, age in enumerate((12.0, 65.0, 14_003.0))),
    *(
        answer("long-000", i, False, age_s=age, mode="window only")
        for i, age in enumerate((12.0, 65.0, 14_003.0))
    ),
]


def test_figures_are_those_of_the_rows() -> None:
    report = report_of(ROWS)
    whole, dropping = report.arms
    assert (whole.dropped, dropping.dropped) == (0.0, pytest.approx(0.6))
    assert dropping.bytes_per_hour == 1600
    assert (whole.past.right, whole.past.asked, whole.now.asked) == (4, 4, 1)
    assert (dropping.past.right, dropping.past_difference.value) == (3, -0.25)
    assert (whole.ttft_s, whole.quiet_ttft_s) == (0.01, 0.001)
    assert (dropping.reduction_in_force, dropping.quiet_ttft_s) == ("dtd:0.9", 0.003)
    assert [figure.name for figure in report.budgets] == ["2", "8"]
    assert report.budgets[0].past_difference.value == -0.5
    assert report.forms[1].past_difference.value == -1.0
    by_age = {(f.mode, f.age_s): f.right.value for f in report.ages}
    assert by_age == {
        (mode, age): value
        for mode, value in (("retrieval", 1.0), ("window only", 0.0))
        for age in (10, 60, 14_000)
    }
    assert [row.value for row in benchmark_rows(report) if row.name.startswith("evidence")] == [
        100.0, 100.0, 100.0,
    ]  # fmt: skip


def test_claims_of_what_is_dropped_are_of_the_arms_and_can_be_missed() -> None:
    def met(wrong_count: int, token_count: int) -> list[tuple[str, bool | None]]:
        others = ("last_kept:aggressive/model", "last_kept:balanced/int4")
        rows = [stored("none/model", 1000), *(stored(arm, token_count) for arm in others)]
        rows += [answer("mixed-000", i, True) for i in range(40)]
        rows += [answer("mixed-000", i, i >= wrong_count, arm=a) for a in others for i in range(40)]
        return [(row.unit, row.met) for row in claim_rows(report_of(rows))]

    units = ["%", "points", "MiB", "points"]
    assert met(0, 100) == [(unit, True) for unit in units]
    assert met(2, 210) == [(unit, False) for unit in units]


def test_what_is_recommended_is_what_new_sessions_of_the_built_in_model_have() -> None:
    path = Path("eval/streamworld/checkpoint/lookback.json")
    defaults = json.loads(path.read_text())
    presets = defaults["reduction_presets"]
    specs = [
        ReductionSpec.parse(name, presets)
        for name in (RECOMMENDED.reduction, defaults["reduction"])
    ]
    assert specs[0] == specs[1]
    assert defaults["kv_encoding"] == RECOMMENDED.encoding


def test_the_page_follows_from_the_rows_as_the_file_holds_them_and_needs_nothing_else() -> None:
    first = page(report_of(ROWS), ["nothing"])
    again = page(report_of(json.loads(json.dumps(ROWS))), ["nothing"])
    assert first == again
    assert first.count("<svg") == 5
    assert not re.search(r'(?:src|href)="(?!#)', first.replace('xlink:href="#', 'x="#'))
    assert "Left out: nothing" in first


def test_a_run_that_has_answered_nothing_still_gives_a_page() -> None:
    assert "<h1>" in page(report_of([]))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_a_run_that_was_stopped_anywhere_gives_a_page(share: float) -> None:
    assert "<h1>" in page(report_of(ROWS[: max(1, int(share * len(ROWS)))]))


@pytest.mark.parametrize("group", ["past", "now"])
def test_a_run_that_has_asked_of_one_group_alone_gives_a_page(group: str) -> None:
    kinds = PAST_KINDS if group == "past" else NOW_KINDS
    rows = [row for row in ROWS if row["row"] == "stream" or row["kind"] in kinds]
    assert "<h1>" in page(report_of(rows))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "another"}, "are of streamworld, the service runs another"),
        ({"reduction_in_force": "last_kept:0.1"}, "is last_kept:0.1 now: begin new ones"),
    ],
)
def test_rows_of_another_model_or_strength_are_refused(
    tmp_path: Path, change: dict[str, str], told: str
) -> None:
    row = {
        "row": "stream", "key": ["a", "b"], "stream": "mixed-000", "arm": "last_kept:light/model",
        "model": "streamworld", "reduction_in_force": "last_kept:0.95",
    }  # fmt: skip
    with ResultsFile(tmp_path / "answers.jsonl", "plan") as results:
        results.append(row)
        refuse_other(results, row)
        with pytest.raises(ResultsError, match=told):
            refuse_other(results, {**row, **change})


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.5, 0.95), (4.0, 1.0), (1.0, 0.4)]
    assert pareto_front(points) == [(1.0, 0.5), (2.5, 0.95), (4.0, 1.0)]
