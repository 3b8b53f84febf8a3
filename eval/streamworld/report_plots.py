"""The curves of a report as inline SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from eval.streamworld.curves import BUDGET
from eval.streamworld.modes import Mode
from eval.streamworld.report_figures import Figure, Report
from eval.streamworld.summary import Share

_PANEL_IN = (5.6, 3.8)
_WIDE_PANEL_IN = (11.2, 3.8)
_MARKERS = {"model": "o", "int8": "s", "int4": "^"}


def drop_plot(report: Report) -> str:
    """Accuracy against the share of tokens that is dropped, a line a policy."""
    arms = [arm for arm in report.arms if arm.name.endswith("/model")]

    def draw(axes: Axes, group: str) -> None:
        whole = [arm for arm in arms if _policy(arm) == "none"]
        for policy in dict.fromkeys(_policy(arm) for arm in arms if _policy(arm) != "none"):
            own = [arm for arm in arms if _policy(arm) == policy]
            own = sorted([*whole, *own], key=lambda arm: arm.dropped)
            line(axes, [arm.dropped for arm in own], [getattr(a, group) for a in own], policy)
        axes.set_xlabel("share of visual tokens dropped")

    return svg("drop", [_panel("past", draw), _panel("now", draw)])


def bytes_plot(report: Report) -> str:
    """Accuracy against bytes per hour, a point an arm, with the Pareto front."""
    policies = list(dict.fromkeys(_policy(arm) for arm in report.arms))

    def draw(axes: Axes, group: str) -> None:
        told = set[str]()
        for arm in report.arms:
            policy, encoding = _policy(arm), arm.name.rpartition("/")[2]
            label = policy if encoding == "model" else f"{policy}, {encoding}"
            line(
                axes, [_mib(arm)], [getattr(arm, group)], "" if label in told else label,
                marker=_MARKERS[encoding], colour=f"C{policies.index(policy)}",
            )  # fmt: skip
            told.add(label)
        front = pareto_front([(_mib(arm), getattr(arm, group).value) for arm in report.arms])
        if front:  # nothing of the group may have been asked yet
            xs, ys = zip(*front, strict=True)
            axes.step(xs, ys, where="post", color="k", lw=0.8, label="Pareto front")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("MiB per hour of stream")
        axes.set_ylabel("accuracy")
        lowest = min((getattr(arm, group).interval[0] for arm in report.arms), default=0.0)
        axes.set_ylim((0.0 if math.isnan(lowest) else lowest) - 0.02, 1.02)

    return svg("bytes", [_panel("past", draw), _panel("now", draw)])


def pareto_drawing(report: Report) -> str:
    """`bytes_plot` as a file of its own."""
    return '<?xml version="1.0" encoding="utf-8"?>\n' + bytes_plot(report)


def budget_plot(report: Report) -> str:
    """Accuracy and recall against tokens in context."""

    def draw(axes: Axes, _: str) -> None:
        tokens = [figure.context_tokens for figure in report.budgets]
        for group in ("past", "now"):
            line(axes, tokens, [getattr(figure, group) for figure in report.budgets], group)
        recall = [figure.recall for figure in report.budgets]
        axes.plot(tokens, recall, "--", marker="x", label="recall of evidence")
        axes.set_xscale("log", base=2)
        axes.set_xlabel(
            f"tokens in context per layer ({', '.join(f.name for f in report.budgets)} units)"
        )

    return svg("budget", [("without reduction", lambda axes: draw(axes, ""))])


def age_plot(report: Report) -> str:
    """Accuracy against the age of the evidence, a line a mode; and recall of retrieval."""

    def accuracy(axes: Axes) -> None:
        for mode in dict.fromkeys(figure.mode for figure in report.ages):
            own = [figure for figure in report.ages if figure.mode == mode]
            line(axes, [max(f.age_s, 1) for f in own], [f.right for f in own], mode)
        _age_axis(axes)

    def recall(axes: Axes) -> None:
        own = [f for f in report.ages if f.mode == Mode.RETRIEVAL.value and f.age_s]
        axes.plot([f.age_s for f in own], [f.recall for f in own], marker="x", label="retrieval")
        _age_axis(axes)
        axes.set_ylabel("recall of known spans")
        axes.set_ylim(-0.02, 1.05)

    return svg("age", [(f"{BUDGET} units in context", accuracy), ("cited evidence", recall)])


def ttft_plot(report: Report) -> str:
    """Time to the first token against budget, and against the age of what was asked about."""

    def budgets(axes: Axes) -> None:
        ms = [1000 * figure.ttft_s for figure in report.budgets]
        axes.plot([int(figure.name) for figure in report.budgets], ms, marker="o", label="median")
        axes.set_xlabel("units in context")
        axes.set_ylabel("TTFT, ms")
        axes.set_ylim(bottom=0)

    def ages(axes: Axes) -> None:
        for mode in dict.fromkeys(figure.mode for figure in report.ages):
            own = [figure for figure in report.ages if figure.mode == mode]
            x = [max(figure.age_s, 1) for figure in own]
            axes.plot(x, [1000 * f.ttft_s for f in own], marker="o", ms=3, label=mode)
        _age_axis(axes)
        axes.set_yscale("log")
        axes.set_ylabel("TTFT, ms")

    return svg("ttft", [("by budget", budgets), ("by mode", ages)])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points for which none is both smaller in x and at least as large in y, by x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not math.isnan(y) and (not front or y > front[-1][1]):
            front.append((x, y))
    return front


Panel = tuple[str, Callable[[Axes], None]]


def _panel(group: str, draw: Callable[[Axes, str], None]) -> Panel:
    return group, lambda axes: draw(axes, group)


def _policy(arm: Figure) -> str:
    return arm.name.partition("/")[0].partition(":")[0]


def _mib(arm: Figure) -> float:
    return arm.bytes_per_hour / 2**20


def _age_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("age of the evidence, s (now: 1)")


def line(
    axes: Axes,
    x: Sequence[float],
    shares: Sequence[Share],
    label: str,
    *,
    marker: str = "o",
    colour: str | None = None,
    width: float = 1.2,
) -> None:
    """Draws shares with their intervals, those of nothing left out."""
    points = [(a, s) for a, s in zip(x, shares, strict=True) if s.asked and not math.isnan(a)]
    if not points:
        return
    values = [counted.value for _, counted in points]
    bounds = [counted.interval for _, counted in points]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)]
    axes.errorbar(
        [a for a, _ in points], values, yerr=[below, above], label=label or None,
        marker=marker, markersize=4, capsize=2, linewidth=width, elinewidth=0.6, color=colour,
    )  # fmt: skip


def svg(name: str, panels: Sequence[Panel], *, wide: bool = False) -> str:
    """One drawing; equal figures give equal bytes."""
    width, height = _WIDE_PANEL_IN if wide else _PANEL_IN
    # The salt makes the ids of drawings in one page differ, and those of two runs equal.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}):
        canvas = Canvas(figsize=(width * len(panels), height), layout="constrained")
        for number, (title, draw) in enumerate(panels):
            axes = canvas.add_subplot(1, len(panels), number + 1)
            draw(axes)
            axes.set_title(title)
            axes.grid(alpha=0.3)
            if not axes.get_ylabel():
                axes.set_ylabel("accuracy")
                axes.set_ylim(-0.02, 1.05)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
