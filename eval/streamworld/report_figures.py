"""The figures of a benchmark run, from its rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eval.streamworld.curves import AS_SERVED, BUDGETS, REFERENCE
from eval.streamworld.modes import Mode
from eval.streamworld.results_file import Row
from eval.streamworld.row_groups import (
    Difference,
    cited_recall,
    difference,
    is_now,
    is_past,
    mean,
    median,
)
from eval.streamworld.scenarios import AGES_S
from eval.streamworld.selection_figures import Selection, selection_of
from eval.streamworld.summary import Share, share


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What was measured of one arm, budget, or mode at one age."""

    name: str
    past: Share
    """Questions about what was there earlier."""
    past_difference: Difference
    """To the reference, over the questions that both answered."""
    now: Share
    """Questions about what is on screen at the moment they are asked about."""
    now_difference: Difference
    recall: float
    """Mean share of the known spans of evidence of past questions that answers cite; nan: none."""
    ttft_s: float
    """Median time to the first token, with several questions asked together; nan: none."""
    context_tokens: float
    """Mean tokens in context per layer."""
    quiet_ttft_s: float = math.nan
    """Median time to the first token of one question at a time, nothing else being done."""
    reduction_in_force: str = ""
    """What the arm's name came to: a preset as the strength that it was."""
    dropped: float = math.nan
    """Share of the visual tokens that the reference keeps which this arm dropped."""
    bytes_per_hour: float = math.nan
    """Disk that an hour of stream takes, its index included."""

    def as_json(self) -> dict[str, Any]:
        """Returns plain values; what was not measured is None."""
        numbers = (
            "recall", "ttft_s", "quiet_ttft_s", "context_tokens", "dropped", "bytes_per_hour",
        )  # fmt: skip
        found: dict[str, Any] = {"name": self.name, "reduction_in_force": self.reduction_in_force}
        for group in ("past", "now"):
            counted: Share = getattr(self, group)
            difference: Difference = getattr(self, f"{group}_difference")
            found[group] = counted.as_json()
            found[f"{group}_difference"] = difference.as_json()
        for name in numbers:
            value = getattr(self, name)
            found[name] = None if math.isnan(value) else value
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeFigure:
    """Accuracy of one mode about evidence of one age."""

    mode: str
    age_s: int
    """The least age; 0: on screen."""
    right: Share
    difference: Difference
    """To retrieval."""
    recall: float
    ttft_s: float

    def as_json(self) -> dict[str, Any]:
        """Returns plain values; what was not measured is None."""
        return {
            "mode": self.mode,
            "age_s": self.age_s,
            "right": self.right.as_json(),
            "difference": self.difference.as_json(),
            "recall": None if math.isnan(self.recall) else self.recall,
            "ttft_s": None if math.isnan(self.ttft_s) else self.ttft_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioFigure:
    """Accuracy of one arm in one scenario, or about one side of slow changes."""

    arm: str
    scenario: str
    right: Share

    def as_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"arm": self.arm, "scenario": self.scenario, "right": self.right.as_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a run tells."""

    selection: Selection
    arms: tuple[Figure, ...]
    budgets: tuple[Figure, ...]
    forms: tuple[Figure, ...]
    ages: tuple[AgeFigure, ...]
    scenarios: tuple[ScenarioFigure, ...]
    stream_count: int
    answer_count: int
    model: str

    def as_json(self) -> dict[str, Any]:
        """Returns plain values."""
        groups = ("arms", "budgets", "forms", "ages", "scenarios")
        found: dict[str, Any] = {g: [f.as_json() for f in getattr(self, g)] for g in groups}
        counts = {"streams": self.stream_count, "answers": self.answer_count}
        selection = self.selection.as_json()
        return {"model": self.model, **counts, "selection": selection, **found}


def report_of(rows: Sequence[Row]) -> Report:
    """The figures of the rows of one plan."""
    every = [row for row in rows if row["row"] == "answer"]
    answers = [row for row in every if not row["alone"]]
    alone = [row for row in every if row["alone"]]
    streams = [row for row in rows if row["row"] == "stream"]
    mixed = [row for row in answers if row["stream"].startswith("mixed")]
    long = [row for row in answers if row["stream"].startswith("long")]
    selection = [row for row in answers if row["stream"].startswith("selection")]
    as_served = [row for row in mixed if _asked(row) == _AS_SERVED]
    return Report(
        selection=selection_of(selection, [r for r in alone if r["arm"] == str(REFERENCE)]),
        arms=tuple(_arm_figures(as_served, streams, alone)),
        budgets=tuple(_budget_figures(mixed)),
        forms=tuple(_form_figures(mixed)),
        ages=tuple(_age_figures(long)),
        scenarios=tuple(_scenario_figures(as_served)),
        stream_count=len({row["stream"] for row in streams}),
        answer_count=len(every),
        model=streams[0]["model"] if streams else "",
    )


_AS_SERVED = (AS_SERVED.mode.value, AS_SERVED.budget, AS_SERVED.form)


def _asked(row: Row) -> tuple[str, int, str]:
    return row["mode"], row["budget"], row["form"]


def _figure(name: str, rows: Sequence[Row], reference: Sequence[Row], **more: Any) -> Figure:
    return Figure(
        name=name,
        past=share(filter(is_past, rows)),
        past_difference=difference(rows, reference, is_past),
        now=share(filter(is_now, rows)),
        now_difference=difference(rows, reference, is_now),
        recall=cited_recall(rows),
        ttft_s=median([row["ttft_s"] for row in rows]),
        context_tokens=mean([row["tokens"] for row in rows]),
        **more,
    )


def _arm_figures(
    rows: Sequence[Row], streams: Sequence[Row], alone: Sequence[Row]
) -> Iterable[Figure]:
    reference = [row for row in rows if row["arm"] == str(REFERENCE)]
    stored = {(row["arm"], row["stream"]): row for row in streams}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == arm]
        names = sorted({row["stream"] for row in of_arm})
        own = [stored[arm, name] for name in names]
        whole = [stored.get((str(REFERENCE), name)) for name in names]
        paired = [(a, b) for a, b in zip(own, whole, strict=True) if b is not None]
        kept = sum(a["tokens"] for a, _ in paired)
        hours = sum(row["duration_s"] for row in own) / 3600
        yield _figure(
            arm, of_arm, reference,
            dropped=1 - kept / sum(b["tokens"] for _, b in paired) if paired else math.nan,
            bytes_per_hour=sum(row["disk_bytes"] for row in own) / hours,
            quiet_ttft_s=median([
                row["ttft_s"] for row in alone
                if row["arm"] == arm and row["mode"] == AS_SERVED.mode.value
            ]),
            reduction_in_force=own[0]["reduction_in_force"],
        )  # fmt: skip


def _budget_figures(rows: Sequence[Row]) -> Iterable[Figure]:
    wanted = [
        row
        for row in rows
        if row["arm"] == str(REFERENCE)
        and (row["mode"], row["form"]) == (Mode.RETRIEVAL.value, "free")
    ]
    # Only questions that were asked with every budget: those of other curves had one.
    budgets = [b for b in BUDGETS if any(row["budget"] == b for row in wanted)]
    if len(budgets) > 1:
        reference = [row for row in wanted if row["budget"] == AS_SERVED.budget]
        for budget in budgets:
            own = [row for row in wanted if row["budget"] == budget]
            yield _figure(str(budget), own, reference)


def _form_figures(rows: Sequence[Row]) -> Iterable[Figure]:
    wanted = [
        row for row in rows if row["arm"] == str(REFERENCE) and _asked(row)[:2] == _AS_SERVED[:2]
    ]
    free = [row for row in wanted if row["form"] == "free"]
    choice = [row for row in wanted if row["form"] == "choice"]
    if choice:
        yield _figure("free", free, free)
        yield _figure("choice", choice, free)


def age_group_s(row: Row) -> int:
    """The age that a question counts as: the largest of those asked about that it has reached."""
    if is_now(row):
        return 0
    return max((age for age in AGES_S if age <= row["age_s"]), default=0)


def _age_figures(rows: Sequence[Row]) -> Iterable[AgeFigure]:
    wanted = [row for row in rows if is_now(row) or is_past(row)]
    for mode in Mode:
        for age_s in (0, *AGES_S):
            at_age = [row for row in wanted if age_group_s(row) == age_s]
            own = [row for row in at_age if row["mode"] == mode.value]
            reference = [row for row in at_age if row["mode"] == Mode.RETRIEVAL.value]
            if own:
                yield AgeFigure(
                    mode=mode.value,
                    age_s=age_s,
                    right=share(own),
                    difference=difference(own, reference),
                    recall=cited_recall(own),
                    ttft_s=median([row["ttft_s"] for row in own]),
                )


def _scenario_figures(rows: Sequence[Row]) -> Iterable[ScenarioFigure]:
    groups: dict[str, Callable[[Row], bool]] = {
        name: lambda row, name=name: row["scenario"] == name and is_past(row)  # type: ignore[misc]
        for name in dict.fromkeys(row["scenario"] for row in rows)
    }
    groups |= {
        f"{side} drift": lambda row, side=side: row["drift"] == side  # type: ignore[misc]
        for side in ("before", "after")
    }
    for arm in dict.fromkeys(row["arm"] for row in rows):
        for name, wanted in groups.items():
            counted = share(row for row in rows if row["arm"] == arm and wanted(row))
            if counted.asked:
                yield ScenarioFigure(arm=arm, scenario=name, right=counted)
