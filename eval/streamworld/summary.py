"""Accuracies with 95 % intervals, by mode, kind and age of the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.streamworld.modes import Mode
from svc.report import Row

Record = dict[str, Any]
"""One asked question, as it stands in the results file."""

_Z_95 = 1.959964
_AGES_S = ((60, "< 1 min"), (300, "1-5 min"), (900, "5-15 min"), (math.inf, "15-60 min"))
NOW = frozenset({"now_object", "now_colour", "now_scene"})
PAST = frozenset({"past_object", "past_colour", "past_scene"})
REPORTED = {
    "now_what": "",
    "past_text": "",
    "count": ">= 0.8",
    "order": ">= 0.8",
    "motion": ">= 0.8",
}


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95 % interval (Wilson, 1927)."""

    right: int
    asked: int

    @property
    def value(self) -> float:
        """The share; nan where nothing was asked."""
        return self.right / self.asked if self.asked else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95 % interval."""
        if not self.asked:
            return (math.nan, math.nan)
        n, p, z2 = self.asked, self.value, _Z_95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return (max(0.0, centre - half), min(1.0, centre + half))

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
        return f"{100 * self.value:.1f} [{100 * low:.0f}-{100 * high:.0f}] n={self.asked}"


def age_of(record: Record) -> str:
    """The age of a question's evidence as a word; "now" for what is on screen."""
    if record["age_s"] is None:
        return "never seen"
    if record["kind"].startswith("now"):
        return "now"
    return next(name for bound, name in _AGES_S if record["age_s"] < bound)


def share(records: Iterable[Record], field: str = "right") -> Share:
    """The share of records in which `field` is true."""
    values = [bool(record[field]) for record in records]
    return Share(sum(values), len(values))


def print_accuracy(records: Sequence[Record], console: Console) -> None:
    """Prints free answers by kind and by age, a column a mode."""
    free = [record for record in records if record["form"] == "free"]
    ages = [*dict.fromkeys(name for _, name in _AGES_S)]
    kinds = [*dict.fromkeys(record["kind"] for record in free)]
    _print("Accuracy by kind (%, 95 % interval)", free, kinds, lambda r: str(r["kind"]), console)
    past = [record for record in free if record["kind"] in PAST]
    title = "Past object, colour and scene by age of the evidence"
    _print(title, past, ages, age_of, console)


def _print(
    title: str,
    records: Sequence[Record],
    groups: Sequence[str],
    group_of: Callable[[Record], str],
    console: Console,
) -> None:
    table = Table(title=title)
    table.add_column("")
    for mode in Mode:
        table.add_column(mode.value, justify="right")
    for group in groups:
        cells = [
            str(share(r for r in records if group_of(r) == group and r["mode"] == mode.value))
            for mode in Mode
        ]
        table.add_row(group, *cells)
    console.print(table)


def rows(records: Sequence[Record]) -> list[Row]:
    """The figures that have targets, and those that are reported beside them."""

    def of(mode: Mode, kinds: Iterable[str], form: str = "free") -> list[Record]:
        wanted = set(kinds)
        return [
            r
            for r in records
            if r["mode"] == mode.value and r["kind"] in wanted and r["form"] == form
        ]

    retrieval = Mode.RETRIEVAL
    every = {record["kind"] for record in records}
    cited = [r for r in of(retrieval, PAST) if r["right"]]
    found = [_row("current object, colour, scene", of(retrieval, NOW), ">= 0.95")]
    found += [_row(kind, of(retrieval, [kind]), "") for kind in sorted(NOW)]
    found += [_row("past object, colour, scene", of(retrieval, PAST), ">= 0.95")]
    found += [_row(kind, of(retrieval, [kind]), "") for kind in sorted(PAST)]
    found += [
        _row("past, sliding window only", of(Mode.WINDOW, PAST), "<= 0.3"),
        _row("multiple choice by likelihood", of(retrieval, NOW | PAST, "choice"), ">= 0.95"),
        _row("not seen", of(retrieval, ["not_seen"]), ">= 0.9"),
        _row("right past answers that cite a true moment", cited, ">= 0.9", field="cited"),
    ]
    found += [
        _row(kind, of(retrieval, [kind]), target)
        for kind, target in REPORTED.items()
        if kind in every
    ]
    others = (mode for mode in Mode if mode not in (retrieval, Mode.WINDOW))
    found += [_row(f"past, {mode.value}", of(mode, PAST), "") for mode in others]
    return found


def _row(name: str, records: Sequence[Record], target: str, field: str = "right") -> Row:
    counted = share(records, field)
    low, high = counted.interval
    label = f"{name} (n={counted.asked}, 95 % {low:.3f}-{high:.3f})"
    return Row(name=label, value=counted.value, unit="", target=target)
