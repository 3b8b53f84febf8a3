"""Groups of a benchmark's answers, and what is counted of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence

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


def by_question(rows: Iterable[Row]) -> dict[Hashable, bool]:
    """Whether each question was answered rightly, by what names it."""
    return {(row["stream"], row["number"]): row["right"] for row in rows}


def difference(
    rows: Sequence[Row], reference: Sequence[Row], wanted: Callable[[Row], bool]
) -> PairedDifference:
    """How much more often the first rows are right than the others, of the wanted questions."""
    return paired_difference(
        by_question(filter(wanted, rows)), by_question(filter(wanted, reference))
    )


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return statistics.fmean(values) if values else math.nan


def median(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    return statistics.median(values) if values else math.nan


def cited_recall(rows: Iterable[Row]) -> float:
    """Mean share of the known spans of evidence of past questions that answers cite."""
    return mean([row["recall"] for row in rows if is_past(row) and row["recall"] is not None])
