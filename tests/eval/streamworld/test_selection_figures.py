"""What is claimed of the memory follows from the rows, and can fail."""

from __future__ import annotations

import pytest

from eval.streamworld.claims import claim_rows
from eval.streamworld.modes import Mode
from eval.streamworld.paired import independent_difference
from eval.streamworld.report_figures import report_of
from eval.streamworld.report_page import page
from eval.streamworld.report_rows import benchmark_rows
from eval.streamworld.result_rows import layer_recall
from eval.streamworld.results_file import Row
from eval.streamworld.selection_figures import GROUPS
from eval.streamworld.summary import Share
from svc.report import Row as ReportRow

ACCURACY = {
    Mode.RETRIEVAL: 0.9, Mode.EVIDENCE: 0.9, Mode.UNIFORM: 0.6, Mode.RANDOM: 0.3, Mode.RECENT: 0.9,
    Mode.WINDOW: 0.1,
}  # fmt: skip


def answer(mode: Mode, stream: int, number: int, right: bool, **more: object) -> Row:
    base: Row = {
        "row": "answer", "plan": "p", "stream": f"selection-{stream:03d}", "scenario": "plain",
        "arm": "none/model", "number": number, "mode": mode.value, "budget": 8, "form": "free",
        "kind": "past_colour", "drift": "", "right": right, "age_s": 70.0, "recall": 1.0,
        "ttft_s": 0.02, "tokens": 72, "alone": False, "layer_recall": [0.5, 1.0, 1.0],
        "snapshot_units": 300,
    }  # fmt: skip
    return {**base, **more}


def rows(accuracy: dict[Mode, float] = ACCURACY, kind: str = "past_colour") -> list[Row]:
    """Ten streams with ten questions each; the first questions of each are right."""
    return [
        answer(mode, stream, number, number < round(10 * share), kind=kind)
        for mode, share in accuracy.items()
        for stream in range(10)
        for number in range(10)
    ]


def claims(found: list[Row]) -> list[ReportRow]:
    return claim_rows(report_of(found))


def test_claims_about_the_past_have_the_difference_its_target_and_whether_it_was_met() -> None:
    past = claims(rows())
    assert ["less evidence only" in past[0].name, "less uniform" in past[1].name] == [True, True]
    assert all("n=100, 10 streams" in claim.name for claim in past)
    assert [(round(claim.value, 6), claim.target, claim.met) for claim in past] == [
        (0.0, ">= -2", True),
        (30.0, ">= 25", True),
    ]


@pytest.mark.parametrize(
    ("kind", "mode", "accuracy"),
    [
        ("past_object", Mode.EVIDENCE, 1.0),
        ("past_object", Mode.UNIFORM, 0.7),
        ("now_object", Mode.RECENT, 1.0),
    ],
)
def test_a_claim_that_does_not_hold_is_told_as_not_met(
    kind: str, mode: Mode, accuracy: float
) -> None:
    assert all(claim.met for claim in claims(rows(kind=kind)))
    bad = claims(rows({**ACCURACY, mode: accuracy}, kind=kind))
    assert [claim.met for claim in bad if f"less {mode.value}" in claim.name] == [False]


def test_full_attention_falls_where_it_is_worse_over_many_units_than_over_few() -> None:
    def whole(short: float, long: float) -> list[Row]:
        return [
            answer(Mode.ALL, 0, number, number % 20 < 20 * share, snapshot_units=units)
            for units, share, numbers in ((100, short, range(20)), (300, long, range(20, 40)))
            for number in numbers
        ]

    (claim,) = claims(whole(0.9, 0.2))
    assert (round(claim.value), claim.met) == (-70, True)
    assert claims(whole(0.9, 0.9))[0].met is False
    lengths = report_of(whole(0.9, 0.2)).selection.lengths
    assert [(figure.least_units, figure.right) for figure in lengths] == [
        (0, Share(18, 20)),
        (256, Share(4, 20)),
    ]


def test_differences_of_different_questions_are_newcombes() -> None:
    # Newcombe 1998, pages 873-890, table II, example (a): 56 of 70 and 48 of 80.
    value, low, high = independent_difference(Share(56, 70), Share(48, 80))
    assert value == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_streams_drawn_again_tell_questions_that_fail_together() -> None:
    # All that differs lies in one of ten streams: ten questions, but one stream.
    found = rows({Mode.RETRIEVAL: 1.0, Mode.EVIDENCE: 1.0})
    for row in found:
        if row["mode"] == Mode.RETRIEVAL.value and row["stream"] == "selection-004":
            row["right"] = False
    figure = report_of(found).selection.figure(Mode.EVIDENCE, "past")
    assert figure is not None
    apart = figure.difference
    assert apart.value == pytest.approx(-0.1)
    assert apart.stream_interval[0] < apart.paired.interval[0]
    assert apart.stream_interval[1] == 0 > apart.paired.interval[1]
    assert apart.interval == apart.stream_interval


def test_two_ways_that_agree_everywhere_may_still_differ() -> None:
    figure = report_of(rows({Mode.RETRIEVAL: 1.0, Mode.EVIDENCE: 1.0})).selection.figure(
        Mode.EVIDENCE, "past"
    )
    assert figure is not None
    assert figure.difference.stream_interval == (0, 0)
    assert figure.difference.interval == figure.difference.paired.interval != (0, 0)


def test_a_layer_has_found_a_span_when_it_read_a_unit_of_it() -> None:
    spans = [(3.0, 5.0), (8.0, 9.0)]
    read = [(2, 5, 9), (4, 7), (3, 8), (8, 10)]
    assert layer_recall(spans, read) == [0.0, 0.5, 1.0, 0.5, 1.0]
    assert layer_recall([], read) is None
    assert layer_recall(spans, ()) is None


def test_layers_are_counted_apart_in_each_group() -> None:
    found = [
        answer(Mode.RETRIEVAL, 0, 0, True, layer_recall=[0.0, 1.0, 1.0]),
        answer(Mode.RETRIEVAL, 0, 1, True, layer_recall=[1.0, 1.0, 1.0]),
        answer(Mode.RETRIEVAL, 0, 2, True, kind="order", layer_recall=[0.5, 0.0, 0.5]),
        answer(Mode.RETRIEVAL, 0, 3, True, kind="not_seen", layer_recall=None),
    ]
    layers = report_of(found).selection.layers
    assert [(figure.group, figure.layers, figure.any_layer, figure.asked) for figure in layers] == [
        ("past", (0.5, 1.0), 1.0, 2),
        ("order", (0.5, 0.0), 0.5, 1),
    ]


def test_every_group_and_mode_is_in_the_page_and_the_rows_have_each_group() -> None:
    kinds = ("past_text", "now_scene", "count", "order", "motion", "not_seen")
    found = [
        {**row, "number": 10 * place + row["number"]}
        for place, kind in enumerate(kinds)
        for row in rows(kind=kind)
    ]
    found += [
        {**answer(mode, 0, 0, True, ttft_s=0.004), "stream": "mixed-000", "alone": True}
        for mode in Mode
    ]
    report = report_of(found)
    assert {(figure.mode, figure.group) for figure in report.selection.modes} == {
        (mode.value, group) for mode in ACCURACY for group in GROUPS
    }
    drawn = page(report)
    assert "What is claimed" in drawn
    assert drawn.count("<svg") == 2
    names = [row.name for row in benchmark_rows(report)]
    for group in GROUPS:
        assert sum(name.startswith(f"{group}: retrieval") for name in names) == 1
    quiet = next(row for row in benchmark_rows(report) if row.unit == "ms")
    assert (quiet.value, quiet.baseline) == (4.0, 20.0)


def test_what_was_not_measured_is_claimed_nowhere() -> None:
    empty = report_of([])
    assert benchmark_rows(empty) == []
    assert "What is claimed" not in page(empty)
