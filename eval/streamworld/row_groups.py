"""Groups of a benchmark's answers, and what is counted of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.streamworld.ablation_table import paired_interval
from eval.streamworld.paired import PairedDifference, paired_difference
from eval.streamworld.results_file import Row
from eval.streamworld.scenarios import PAST_KINDS
from eval.streamworld.wording import NOW_KINDS


def is_past(row: Row) -> bool:
    """Whether it asks about what was there earlier."""
    return row["kind"] in PAST_KINDS


def is_now(row: Row) -> bool:
    """Whether it asks about what is on screen."""
    return row["kind"] in NOW_KINDS


def by_question(rows: Iterable[Row]) -> dict[tuple[str, int], bool]:
    """Whether each question was answered rightly, by the stream and number that name it."""
    return {(row["stream"], row["number"]): row["right"] for row in rows}


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more often the first of two ways was right, over the questions that both answered.

    Its interval is the wider, on each side, of two: Newcombe's paired one, which takes questions as
    independent, and one with streams drawn again, as questions about one stream share its video,
    and often an object. The latter is empty where two ways agree on every question; the former is
    not.
    """

    paired: PairedDifference
    stream_interval: tuple[float, float]
    stream_count: int

    @property
    def asked(self) -> int:
        """Questions that both answered."""
        return self.paired.asked

    @property
    def value(self) -> float:
        """The difference of the shares, in [-1, 1]; nan where nothing was asked."""
        return self.paired.value

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95 % interval."""
        lows, highs = zip(self.paired.interval, self.stream_interval, strict=True)
        return min(lows), max(highs)

    def as_json(self) -> dict[str, Any] | None:
        """Returns plain values; None where nothing was asked."""
        if not self.asked:
            return None
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high, "asked": self.asked}

    def __str__(self) -> str:
        if not self.asked:
            return "-"
        low, high = self.interval
        return f"{100 * self.value:+.1f} [{100 * low:+.1f} to {100 * high:+.1f}]"


def difference(
    rows: Sequence[Row],
    reference: Sequence[Row],
    wanted: Callable[[Row], bool] = lambda _: True,
) -> Difference:
    """How much more often the first rows are right than the others, of the wanted questions."""
    first, second = by_question(filter(wanted, rows)), by_question(filter(wanted, reference))
    by_stream: dict[str, list[float]] = {}
    for name in sorted(first.keys() & second.keys()):
        by_stream.setdefault(name[0], []).append(float(first[name]) - float(second[name]))
    low = high = math.nan
    if by_stream:
        _, low, high = paired_interval([np.array(values) for values in by_stream.values()])
    return Difference(paired_difference(first, second), (low, high), len(by_stream))


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return statistics.fmean(values) if values else math.nan


def median(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    return statistics.median(values) if values else math.nan


def cited_recall(rows: Iterable[Row]) -> float:
    """Mean share of the known spans of evidence of past questions that answers cite."""
    return mean([row["recall"] for row in rows if is_past(row) and row["recall"] is not None])
