"""The curve `selection` as inline SVG: accuracy by mode, and the evidence that layers read."""

from __future__ import annotations

from matplotlib.axes import Axes

from eval.streamworld.report_figures import Report
from eval.streamworld.report_plots import line, svg
from eval.streamworld.selection_figures import GROUPS

_SPREAD = 0.7
"""Of a group's place on the axis, what its modes take."""


def mode_plot(report: Report) -> str:
    """Accuracy in each group, a mark a mode."""
    modes = list(dict.fromkeys(figure.mode for figure in report.selection.modes))
    groups = list(GROUPS)

    def draw(axes: Axes) -> None:
        for place, mode in enumerate(modes):
            own = [figure for figure in report.selection.modes if figure.mode == mode]
            shift = _SPREAD * (place / max(1, len(modes) - 1) - 0.5)
            x = [groups.index(figure.group) + shift for figure in own]
            line(axes, x, [figure.right for figure in own], mode, width=0.0)
        axes.set_xticks(range(len(groups)), groups)

    return svg("modes", [("", draw)], wide=True)


def layer_plot(report: Report) -> str:
    """Share of known spans that each layer read a unit of, a line a group."""

    def draw(axes: Axes) -> None:
        for number, group in enumerate(dict.fromkeys(f.group for f in report.selection.layers)):
            for figure in report.selection.layers:
                if figure.group == group:
                    axes.plot(
                        range(len(figure.layers)), figure.layers, color=f"C{number}", marker="o",
                        ms=3, label=f"{group}, {figure.mode}",
                        linestyle="-" if figure.mode == "retrieval" else ":",
                    )  # fmt: skip
        axes.set_xticks(range(len(report.selection.layers[0].layers)))
        axes.set_xlabel("layer")
        axes.set_ylabel("share of known spans")
        axes.set_ylim(-0.02, 1.05)

    return svg("layers", [("", draw)], wide=True)
