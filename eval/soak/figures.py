"""What a soak came to, as rows: does memory stay flat, do budgets hold, are answers the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median

from eval.soak.budgets import Budgets
from eval.soak.plan import Plan
from eval.soak.run import Outcome
from eval.soak.sampling import Process, Sample
from eval.soak.verdict import Pair, Verdict, pair_up
from eval.streamworld.service import ProcessName
from svc.report import Row

_MIB = 2**20
_HOUR_S = 3600
_PROCESSES: tuple[ProcessName, ...] = ("ingest", "qa")
_FULL_FRACTION = 0.5
"""Of the streams. The budgets are half of what all of them take, so every slot of the RAM tier is
in use by then, and the account that its owner keeps of each, up to 1 KiB, grows no more."""
_LAST_FRACTION = 0.75
_OPEN_FOR_A_MOMENT = 8
"""Descriptors: of the session that the RAM tier's owner reads, and of a segment that is thinned."""


def rows(
    plan: Plan, budgets: Budgets, whole: Outcome, bounded: Outcome, limit_min: float
) -> list[Row]:
    """All figures of a soak.

    Args:
        plan: what was to be pushed.
        budgets: of the bounded store.
        whole, bounded: the two runs.
        limit_min: minutes that both may take together.
    """
    pairs = list(pair_up(bounded.records, whole.records))
    steady = [sample for sample in bounded.samples if sample.all_pushed]
    return [
        *_extent_rows(plan, whole, bounded, limit_min),
        *_budget_rows(budgets, whole, bounded.samples),
        *(row for name in _PROCESSES for row in _process_rows(name, steady)),
        *_steadiness_rows(whole, bounded),
        *_answer_rows(pairs),
    ]


def _extent_rows(plan: Plan, whole: Outcome, bounded: Outcome, limit_min: float) -> list[Row]:
    planned_h = plan.session_count * plan.stream_s / _HOUR_S
    least_h = min(whole.totals.pushed_s, bounded.totals.pushed_s) / _HOUR_S
    minutes = (whole.totals.took_s + bounded.totals.took_s) / 60
    return [
        Row(
            name=f"stream hours of {plan.session_count} sessions through each store; ratio to plan",
            value=least_h,
            unit="h",
            baseline=planned_h,
            ratio=least_h / planned_h,
            target=">= 1",
        ),
        Row(
            name="minutes for both, one after the other",
            value=minutes,
            unit="min",
            target=f"<= {limit_min:g}",
        ),
        Row(
            name="questions a second while pushed, bounded (baseline: unbounded)",
            value=len(bounded.records) / bounded.totals.took_s,
            unit="/s",
            baseline=len(whole.records) / whole.totals.took_s,
        ),
    ]


def _budget_rows(budgets: Budgets, whole: Outcome, samples: Sequence[Sample]) -> list[Row]:
    whole_bytes = sum(whole.totals.session_disk_bytes)
    found = [
        Row(
            name="disk that the unbounded store took; ratio to the bounded one's budget",
            value=whole_bytes / _MIB,
            unit="MiB",
            baseline=budgets.disk / _MIB,
            ratio=whole_bytes / budgets.disk,
        )
    ]
    for name, taken, budget in (
        ("disk", [sample.disk_bytes for sample in samples], budgets.disk),
        ("shared memory", [sample.shared_bytes for sample in samples], budgets.shared),
    ):
        most = max(taken, default=0)
        found.append(
            Row(
                name=f"{name}, the most that was ever taken; ratio to its budget",
                value=most / _MIB,
                unit="MiB",
                baseline=budget / _MIB,
                ratio=most / budget,
                target="<= 1",
            )
        )
    return found


def _process_rows(name: ProcessName, samples: Sequence[Sample]) -> list[Row]:
    """The last quarter of the streams beside the one before."""

    def seen(start: float, stop: float) -> list[Process]:
        part = [sample for sample in samples if start <= sample.pushed_fraction < stop]
        return [sample.processes[name] for sample in part if name in sample.processes]

    third, last = seen(_FULL_FRACTION, _LAST_FRACTION), seen(_LAST_FRACTION, math.inf)
    if not third or not last:
        return []

    def means(figure: Callable[[Process], float]) -> tuple[float, float]:
        return fmean(map(figure, third)), fmean(map(figure, last))

    before, after = means(lambda process: process.memory.anonymous / _MIB)
    found = [
        Row(
            name=f"{name} process, anonymous memory, last quarter; ratio to the third",
            value=after,
            unit="MiB",
            baseline=before,
            ratio=after / before,
            target="<= 1.04",
        )
    ]
    for what, summary, target in (
        ("open descriptors, median of", median, 2),
        ("most open descriptors in", max, _OPEN_FOR_A_MOMENT),
    ):
        counts = [summary(process.descriptor_count for process in part) for part in (third, last)]
        found.append(
            Row(
                name=f"{name} process, {what} the last quarter, less that of the third",
                value=counts[1] - counts[0],
                unit="",
                target=f"<= {target}",
            )
        )
    figures: tuple[tuple[str, str, Callable[[Process], float]], ...] = (
        ("threads", "", lambda process: process.thread_count),
        ("index pages", "MiB", lambda process: process.memory.index_mapped / _MIB),
        ("mapped hot tails", "MiB", lambda process: process.memory.hot_mapped / _MIB),
        ("mapped RAM tier", "MiB", lambda process: process.memory.ram_mapped / _MIB),
    )
    for what, unit, figure in figures:
        before, after = means(figure)
        found.append(
            Row(
                name=f"{name} process, {what}, last quarter (baseline: third)",
                value=after,
                unit=unit,
                baseline=before,
            )
        )
    return found


def _steadiness_rows(whole: Outcome, bounded: Outcome) -> list[Row]:
    pids = {
        (name, process.pid)
        for sample in bounded.samples
        for name, process in sample.processes.items()
    }
    counts = {
        "pushes that were cut off": whole.totals.reconnect_count + bounded.totals.reconnect_count,
        "processes that were started again": max(0, len(pids) - len(_PROCESSES)),
        "faults in the log": whole.totals.fault_count + bounded.totals.fault_count,
        "moments that could not be read": sum(
            record.lost_count for run in (whole, bounded) for record in run.records
        ),
    }
    return [Row(name=name, value=count, unit="", target="<= 0") for name, count in counts.items()]


def _answer_rows(pairs: Sequence[Pair]) -> list[Row]:
    count = len(pairs)
    verdicts = {verdict: [p for p in pairs if p.verdict is verdict] for verdict in Verdict}
    explained = sum(
        len(verdicts[verdict]) for verdict in (Verdict.EQUAL, Verdict.COARSENED, Verdict.FORGOTTEN)
    )
    coarsened = [pair for pair in pairs if pair.bounded.coarsened_s]
    complete = [pair for pair in pairs if pair.complete and pair.bounded.text is not None]
    differences = [d for pair in complete if (d := pair.likelihood_difference) is not None]
    found = [
        Row(
            name="answers with the unbounded store's text, or with another and a note that "
            f"something was thinned or forgotten (of {count})",
            value=_share(explained, count),
            unit="",
            target=">= 1",
        ),
        Row(
            name="of them with the same text",
            value=_share(len(verdicts[Verdict.EQUAL]), count),
            unit="",
        ),
        Row(
            name="of them resting on thinned moments", value=_share(len(coarsened), count), unit=""
        ),
        Row(
            name="questions that failed",
            value=len(verdicts[Verdict.FAILED]),
            unit="",
            target="<= 0",
        ),
        Row(
            name="largest difference of a choice's log-likelihood where nothing was thinned or "
            f"forgotten ({len(differences)} questions)",
            value=max(differences, default=0.0),
            unit="",
            target="<= 0.001",
        ),
    ]
    tiers = [tier for pair in pairs for tier in pair.bounded.tiers]
    found.extend(
        Row(
            name=f"cited moments read from {tier} (of {len(tiers)})",
            value=_share(tiers.count(tier), len(tiers)),
            unit="",
        )
        for tier in ("hot", "ram", "disk")
    )
    for name, chosen in _groups(pairs):
        if not chosen:
            continue
        ours, theirs = _right(chosen)
        found.append(
            Row(
                name=f"{name}: right answers (of {len(chosen)}); ratio to the unbounded store's",
                value=ours,
                unit="",
                baseline=theirs,
                ratio=ours / theirs if theirs else None,
            )
        )
    return found


def _groups(pairs: Sequence[Pair]) -> Iterable[tuple[str, list[Pair]]]:
    """Questions by what they are about, and the part that the bounded store did without."""
    now = [pair for pair in pairs if pair.whole.kind.startswith("now")]
    unseen = [pair for pair in pairs if pair.whole.kind == "not_seen"]
    past = [pair for pair in pairs if pair not in now and pair not in unseen]
    yield "about now", now
    yield "about the past", past
    yield "about what never was", unseen
    yield "resting on thinned moments", [pair for pair in pairs if pair.bounded.coarsened_s]
    dropped = [pair for pair in pairs if pair.bounded.remembers_from_s is not None]
    yield "asked where the oldest video was dropped", dropped


def _right(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Shares of right answers: of the bounded store, and of the one that keeps all."""
    count = len(pairs)
    return (
        _share(sum(pair.bounded.right for pair in pairs), count),
        _share(sum(pair.whole.right for pair in pairs), count),
    )


def _share(part: int, count: int) -> float:
    return part / count if count else 0.0
