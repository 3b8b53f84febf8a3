"""Differences between two arms that answered the same questions, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from eval.streamworld.summary import Share

_Name = TypeVar("_Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much more often the first of two was right, over the questions that both answered.

    The interval is Newcombe's from two Wilson intervals and their correlation (Statistics in
    Medicine 17, 1998, pages 2635-2650, method 10): it holds for few questions and for none on which
    the two differ, where a bootstrap's would be empty. It takes questions as independent.
    """

    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def asked(self) -> int:
        """Questions that both answered."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def value(self) -> float:
        """The difference of the shares, in [-1, 1]; nan where nothing was asked."""
        return (self.first_only - self.second_only) / self.asked if self.asked else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95 % interval."""
        if not self.asked:
            return (math.nan, math.nan)
        first = Share(self.both + self.first_only, self.asked)
        second = Share(self.both + self.second_only, self.asked)
        below, above = _reaches(first)
        second_below, second_above = _reaches(second)
        phi = self._correlation()
        return (
            self.value - _joined(below, second_above, phi),
            self.value + _joined(above, second_below, phi),
        )

    def _correlation(self) -> float:
        """Phi of the table, its numerator corrected for continuity where it is positive."""
        rows = (self.both + self.first_only) * (self.second_only + self.neither)
        columns = (self.both + self.second_only) * (self.first_only + self.neither)
        if not rows * columns:
            return 0.0
        numerator: float = self.both * self.neither - self.first_only * self.second_only
        if numerator > 0:
            numerator = max(numerator - self.asked / 2, 0.0)
        return numerator / math.sqrt(rows * columns)


def paired_difference(
    first: Mapping[_Name, bool], second: Mapping[_Name, bool]
) -> PairedDifference:
    """Compares two arms over the questions that both have, by their names."""
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for question in first.keys() & second.keys():
        counts[bool(first[question]), bool(second[question])] += 1
    return PairedDifference(
        counts[True, True], counts[True, False], counts[False, True], counts[False, False]
    )


def independent_difference(first: Share, second: Share) -> tuple[float, float, float]:
    """How much larger the first of two shares of different questions is, and its 95 % interval.

    Newcombe's from two Wilson intervals (Statistics in Medicine 17, 1998, pages 873-890, method
    10).
    """
    (below, above), (second_below, second_above) = _reaches(first), _reaches(second)
    value = first.value - second.value
    return (
        value,
        value - _joined(below, second_above, 0.0),
        value + _joined(above, second_below, 0.0),
    )


def _reaches(share: Share) -> tuple[float, float]:
    low, high = share.interval
    return share.value - low, high - share.value


def _joined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))
