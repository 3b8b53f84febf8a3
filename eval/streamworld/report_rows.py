"""A benchmark's figures as rows with targets: what is claimed of the memory, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from eval.streamworld.benchmark import ASKED_TOGETHER
from eval.streamworld.curves import REFERENCE
from eval.streamworld.modes import Mode
from eval.streamworld.paired import independent_difference
from eval.streamworld.report_figures import Figure, Report
from eval.streamworld.report_plots import pareto_front
from eval.streamworld.selection_figures import LENGTHS, LengthFigure, Selection
from eval.streamworld.summary import Share
from svc.report import Row

_CLAIMS = (
    ("past", Mode.EVIDENCE, ">= -2"),
    ("past", Mode.UNIFORM, ">= 25"),
    ("now", Mode.RECENT, ">= -1"),
)
_LEAST_FALL_POINTS = 5
_LONG_UNITS = 256


def claim_rows(selection: Selection) -> list[Row]:
    """What is claimed, each with its target; a claim of which nothing was measured is left out."""
    found = []
    for group, mode, target in _CLAIMS:
        figure = selection.figure(mode, group)
        if figure is not None and figure.difference.asked:
            name = (
                f"{group} (n={figure.difference.asked}, {figure.difference.stream_count} streams): "
                f"retrieval less {mode.value} (95 % {_points(figure.difference.interval)})"
            )
            value = 100 * figure.difference.value
            found.append(Row(name=name, value=value, unit="points", target=target))
    return [*found, *_fall_row(selection)]


def benchmark_rows(report: Report) -> list[Row]:
    """All rows of a run: claims, groups, lengths, layers, times, and the arms."""
    return [
        *claim_rows(report.selection),
        *_group_rows(report.selection),
        *_length_rows(report.selection),
        *_layer_rows(report.selection),
        *_time_rows(report.selection),
        *_arm_rows(report.arms),
    ]


def _fall_row(selection: Selection) -> Iterable[Row]:
    short = _joined(f.right for f in selection.lengths if f.least_units == LENGTHS[0])
    long = _joined(f.right for f in selection.lengths if f.least_units >= _LONG_UNITS)
    if short.asked and long.asked:
        value, low, high = independent_difference(long, short)
        yield Row(
            name=(
                f"past: full attention over {_LONG_UNITS} units and more (n={long.asked}) less "
                f"over fewer than {LENGTHS[1]} (n={short.asked}), a limit of the model "
                f"(95 % {_points((low, high))})"
            ),
            value=100 * value,
            unit="points",
            target=f"<= -{_LEAST_FALL_POINTS}",
        )


def _group_rows(selection: Selection) -> Iterable[Row]:
    for figure in selection.modes:
        evidence = selection.figure(Mode.EVIDENCE, figure.group)
        if figure.mode == Mode.RETRIEVAL.value:
            beside, baseline = "", None
            if evidence is not None and evidence.difference.asked:
                difference = evidence.difference
                beside = (
                    f"; beside evidence only, difference {100 * difference.value:+.1f}, "
                    f"{_points(difference.interval)}"
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


def _accuracy(group: str, arm: Figure) -> str:
    counted: Share = getattr(arm, group)
    told = f"{group} {100 * counted.value:.1f} % (n={counted.asked}"
    difference = getattr(arm, f"{group}_difference")
    if arm.name == str(REFERENCE):
        return f"{told})"
    return f"{told}; {100 * difference.value:+.1f}, {_points(difference.interval)})"


def length_name(figure: LengthFigure) -> str:
    """The range of numbers of units."""
    following = [least for least in LENGTHS if least > figure.least_units]
    return f"{figure.least_units}-{following[0] - 1}" if following else f">= {figure.least_units}"


def _joined(shares: Iterable[Share]) -> Share:
    shares = list(shares)
    return Share(sum(s.right for s in shares), sum(s.asked for s in shares))


def _counted(counted: Share) -> str:
    low, high = counted.interval
    return f"n={counted.asked}, 95 % {100 * low:.1f}-{100 * high:.1f}"


def _points(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
