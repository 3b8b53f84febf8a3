"""A benchmark's figures as rows: what is claimed, then everything that was measured beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from eval.streamworld.benchmark import ASKED_TOGETHER
from eval.streamworld.claims import claim_rows, points
from eval.streamworld.curves import REFERENCE
from eval.streamworld.modes import Mode
from eval.streamworld.report_figures import AgeFigure, Figure, Report
from eval.streamworld.report_plots import pareto_front
from eval.streamworld.selection_figures import LENGTHS, LengthFigure, Selection
from eval.streamworld.summary import Share
from svc.report import Row


def benchmark_rows(report: Report) -> list[Row]:
    """All rows of a run: claims, groups, lengths, layers, times, and the arms."""
    return [
        *claim_rows(report),
        *_group_rows(report.selection),
        *_length_rows(report.selection),
        *_layer_rows(report.selection),
        *_time_rows(report.selection),
        *_arm_rows(report.arms),
        *_age_rows(report.ages),
    ]


def _group_rows(selection: Selection) -> Iterable[Row]:
    for figure in selection.modes:
        evidence = selection.figure(Mode.EVIDENCE, figure.group)
        if figure.mode == Mode.RETRIEVAL.value:
            beside, baseline = "", None
            if evidence is not None and evidence.difference.asked:
                difference = evidence.difference
                beside = (
                    f"; beside evidence only, difference {100 * difference.value:+.1f}, "
                    f"{points(difference.interval)}"
                )
                baseline = 100 * evidence.right.value
            name = f"{figure.group}: retrieval ({_counted(figure.right)}{beside})"
            yield Row(name=name, value=100 * figure.right.value, unit="%", baseline=baseline)
        elif figure.group in ("past", "now") and figure.mode != Mode.EVIDENCE.value:
            name = f"{figure.group}: {figure.mode} ({_counted(figure.right)})"
            yield Row(name=name, value=100 * figure.right.value, unit="%")


def _length_rows(selection: Selection) -> Iterable[Row]:
    for figure in selection.lengths:
        name = (
            f"past: full attention over {length_name(figure)} units ({_counted(figure.right)}); "
            f"beside retrieval on the same"
        )
        yield Row(
            name=name,
            value=100 * figure.right.value,
            unit="%",
            baseline=100 * figure.retrieval.value,
        )


def _layer_rows(selection: Selection) -> Iterable[Row]:
    for figure in selection.layers:
        if figure.mode == Mode.RETRIEVAL.value:
            each = ", ".join(f"{100 * value:.1f}" for value in figure.layers)
            yield Row(
                name=(
                    f"{figure.group}: known spans of evidence that some layer read, "
                    f"n={figure.asked} (layer by layer {each})"
                ),
                value=100 * figure.any_layer,
                unit="%",
            )


def _time_rows(selection: Selection) -> Iterable[Row]:
    for figure in selection.ways:
        if not math.isnan(figure.quiet_ttft_s):
            together = None if math.isnan(figure.ttft_s) else 1000 * figure.ttft_s
            yield Row(
                name=(
                    f"{figure.mode}: median time to the first token, one question at a time; "
                    f"beside {ASKED_TOGETHER} together while a stream is pushed"
                ),
                value=1000 * figure.quiet_ttft_s,
                unit="ms",
                baseline=together,
            )


def _arm_rows(arms: Iterable[Figure]) -> Iterable[Row]:
    arms = list(arms)
    whole = next((arm for arm in arms if arm.name == str(REFERENCE)), None)
    for arm in sorted(arms, key=lambda arm: -arm.bytes_per_hour):
        on_front = [
            group
            for group in ("past", "now")
            if (arm.bytes_per_hour, getattr(arm, group).value)
            in pareto_front([(a.bytes_per_hour, getattr(a, group).value) for a in arms])
        ]
        front = f", on the front of {' and '.join(on_front)}" if on_front else ""
        quiet = (
            ""
            if math.isnan(arm.quiet_ttft_s)
            else f"; first token alone {1000 * arm.quiet_ttft_s:.0f} ms"
        )
        policy = arm.name.partition("/")[0]
        stored = "" if arm.reduction_in_force == policy else f" ({arm.reduction_in_force})"
        name = (
            f"{arm.name}{stored}{front}: {100 * arm.dropped:.0f} % dropped; "
            f"{_accuracy('past', arm)}; {_accuracy('now', arm)}{quiet}"
        )
        baseline = None if whole is None else whole.bytes_per_hour / 2**20
        yield Row(
            name=name,
            value=arm.bytes_per_hour / 2**20,
            unit="MiB/h",
            baseline=baseline,
            ratio=None if whole is None else whole.bytes_per_hour / arm.bytes_per_hour,
        )


def _age_rows(ages: Sequence[AgeFigure]) -> Iterable[Row]:
    uniform = {f.age_s: f.right for f in ages if f.mode == Mode.UNIFORM.value}
    for figure in ages:
        if figure.mode == Mode.RETRIEVAL.value:
            beside = uniform.get(figure.age_s)
            about = f"at least {figure.age_s} s old" if figure.age_s else "on screen or newer"
            yield Row(
                name=(
                    f"evidence {about}, on long streams: retrieval "
                    f"({_counted(figure.right)}); beside uniform"
                ),
                value=100 * figure.right.value,
                unit="%",
                baseline=None if beside is None else 100 * beside.value,
            )


def _accuracy(group: str, arm: Figure) -> str:
    counted: Share = getattr(arm, group)
    told = f"{group} {100 * counted.value:.1f} % (n={counted.asked}"
    difference = getattr(arm, f"{group}_difference")
    if arm.name == str(REFERENCE):
        return f"{told})"
    return f"{told}; {100 * difference.value:+.1f}, {points(difference.interval)})"


def length_name(figure: LengthFigure) -> str:
    """The range of numbers of units."""
    following = [least for least in LENGTHS if least > figure.least_units]
    return f"{figure.least_units}-{following[0] - 1}" if following else f">= {figure.least_units}"


def _counted(counted: Share) -> str:
    low, high = counted.interval
    return f"n={counted.asked}, 95 % {100 * low:.1f}-{100 * high:.1f}"
