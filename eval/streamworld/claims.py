"""What is claimed of the memory, and of what it drops, as rows with targets; all can be missed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eval.streamworld.curves import RECOMMENDED, REFERENCE, Arm
from eval.streamworld.modes import Mode
from eval.streamworld.paired import independent_difference
from eval.streamworld.report_figures import Figure, Report
from eval.streamworld.row_groups import Difference
from eval.streamworld.selection_figures import LENGTHS, Selection
from eval.streamworld.summary import Share
from svc.report import Row

_OF_SELECTION = (
    ("past", Mode.EVIDENCE, ">= -2"),
    ("past", Mode.UNIFORM, ">= 25"),
    ("now", Mode.RECENT, ">= -1"),
)
_LEAST_FALL_POINTS = 5
_LONG_UNITS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArmClaim:
    arm: Arm
    most_lost_points: float
    """Of past, and of now."""
    least_dropped_percent: float | None = None
    least_times_smaller: float | None = None
    """Of the bytes of an hour."""


_OF_ARMS = (
    _ArmClaim(
        arm=Arm(reduction="last_kept:balanced", encoding="model"),
        least_dropped_percent=70,
        most_lost_points=1,
    ),
    _ArmClaim(
        arm=Arm(reduction="last_kept:aggressive", encoding="model"),
        least_dropped_percent=80,
        most_lost_points=2.5,
    ),
    _ArmClaim(arm=RECOMMENDED, least_times_smaller=10, most_lost_points=2),
)


def claim_rows(report: Report) -> list[Row]:
    """Every claim with its target; one of which nothing was measured is left out."""
    return [
        *_selection_rows(report.selection),
        *_fall_row(report.selection),
        *_arm_rows({figure.name: figure for figure in report.arms}),
    ]


def points(interval: tuple[float, float]) -> str:
    """An interval of differences, in points."""
    return f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def _selection_rows(selection: Selection) -> Iterable[Row]:
    for group, mode, target in _OF_SELECTION:
        figure = selection.figure(mode, group)
        if figure is not None and figure.difference.asked:
            yield _difference_row(group, "retrieval", mode.value, figure.difference, target)


def _difference_row(group: str, what: str, other: str, difference: Difference, target: str) -> Row:
    name = (
        f"{group} (n={difference.asked}, {difference.stream_count} streams): {what} less {other} "
        f"(95 % {points(difference.interval)})"
    )
    return Row(name=name, value=100 * difference.value, unit="points", target=target)


def _fall_row(selection: Selection) -> Iterable[Row]:
    short = _joined(f.right for f in selection.lengths if f.least_units == LENGTHS[0])
    long = _joined(f.right for f in selection.lengths if f.least_units >= _LONG_UNITS)
    if short.asked and long.asked:
        value, low, high = independent_difference(long, short)
        yield Row(
            name=(
                f"past: full attention over {_LONG_UNITS} units and more (n={long.asked}) less "
                f"over fewer than {LENGTHS[1]} (n={short.asked}), a limit of the model "
                f"(95 % {points((low, high))})"
            ),
            value=100 * value,
            unit="points",
            target=f"<= -{_LEAST_FALL_POINTS}",
        )


def _arm_rows(figures: dict[str, Figure]) -> Iterable[Row]:
    whole = figures.get(str(REFERENCE))
    for claim in _OF_ARMS:
        figure = figures.get(str(claim.arm))
        if figure is None or whole is None:
            continue
        if claim.least_dropped_percent is not None:
            yield Row(
                name=f"{claim.arm}: visual tokens dropped",
                value=100 * figure.dropped,
                unit="%",
                target=f">= {claim.least_dropped_percent:g}",
            )
        if claim.least_times_smaller is not None:
            yield Row(
                name=f"{claim.arm}, what new sessions have: an hour's bytes, index included",
                value=figure.bytes_per_hour / 2**20,
                unit="MiB",
                baseline=whole.bytes_per_hour / 2**20,
                ratio=whole.bytes_per_hour / figure.bytes_per_hour,
                target=f">= {claim.least_times_smaller:g}",
            )
        for group, difference in (
            ("past", figure.past_difference),
            ("now", figure.now_difference),
        ):
            if difference.asked:
                target = f">= -{claim.most_lost_points:g}"
                yield _difference_row(group, str(claim.arm), str(REFERENCE), difference, target)


def _joined(shares: Iterable[Share]) -> Share:
    shares = list(shares)
    return Share(sum(s.right for s in shares), sum(s.asked for s in shares))
