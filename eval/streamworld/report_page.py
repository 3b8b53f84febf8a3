"""A report as tables in the terminal, and as one HTML page that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from eval.streamworld.benchmark import ASKED_TOGETHER
from eval.streamworld.claims import claim_rows
from eval.streamworld.curves import BUDGET, WINDOW_UNITS
from eval.streamworld.report_figures import Figure, Report
from eval.streamworld.report_plots import age_plot, budget_plot, bytes_plot, drop_plot, ttft_plot
from eval.streamworld.report_rows import length_name
from eval.streamworld.selection_figures import GROUPS, Selection
from eval.streamworld.selection_plots import layer_plot, mode_plot
from svc.report import print_rows, table_cells

_Cells = Sequence[Sequence[str]]
_ON_INTERVALS = (
    "Shares have Wilson's 95 % intervals, which take questions as independent, though those about "
    "one stream share its video. Differences are paired: the same questions. Their interval is "
    "the wider, on each side, of Newcombe's and of one with streams drawn again; one that holds 0 "
    "tells nothing apart."
)
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
td, th { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right }
td:first-child, th:first-child { text-align: left }
svg { max-width: 100%; height: auto }
"""


def print_report(report: Report, console: Console) -> None:
    """Prints the tables."""
    if claims := claim_rows(report):
        print_rows("What is claimed", claims, console)
    for title, cells in _tables(report):
        table = Table(title=title)
        for i, heading in enumerate(cells[0]):
            if i == 0:
                table.add_column(heading, no_wrap=True)
            else:
                table.add_column(heading, justify="right", overflow="fold")
        for row in cells[1:]:
            table.add_row(*row)
        console.print(table)


def page(report: Report, notes: Sequence[str] = ()) -> str:
    """Returns the page; equal reports give equal pages.

    Args:
        report: What to show.
        notes: What was left out, in words.
    """
    plots = {
        "Accuracy by choice of units": mode_plot if report.selection.modes else None,
        "Evidence read, layer by layer": layer_plot if report.selection.layers else None,
        "Accuracy against tokens dropped": drop_plot if len(report.arms) > 1 else None,
        "Accuracy against bytes per hour": bytes_plot if report.arms else None,
        "Accuracy against tokens in context": budget_plot if report.budgets else None,
        "Accuracy against the age of the evidence": age_plot if report.ages else None,
        "Time to the first token": ttft_plot if report.ages and report.budgets else None,
    }
    measured = (
        f"{report.model}; {report.stream_count} held-out streams, {report.answer_count} answers; "
        f"{BUDGET} units in context where nothing else is said, a window of {WINDOW_UNITS}, "
        f"{ASKED_TOGETHER} questions asked together while the next stream is pushed."
    )
    told = [
        measured,
        _ON_INTERVALS,
        *(f"Left out: {note}" for note in notes),
    ]
    parts = [f"<p>{html.escape(text)}</p>" for text in told]
    if claims := claim_rows(report):
        parts.append(f"<h2>What is claimed</h2>\n{_html_table(table_cells(claims))}")
    for title, plot in plots.items():
        if plot is not None:
            parts.append(f"<h2>{title}</h2>\n{plot(report)}")
    for title, cells in _tables(report):
        parts.append(f"<h2>{html.escape(title)}</h2>\n{_html_table(cells)}")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>StreamWorld</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>StreamWorld through the service</h1>\n{body}\n</body></html>\n"
    )


def _tables(report: Report) -> list[tuple[str, _Cells]]:
    found = _selection_tables(report.selection)
    for title, figures in (
        ("Arms: reduction/element type; differences to none/model", report.arms),
        ("Units in context; differences to 8", report.budgets),
        ("Form of the question; differences to free", report.forms),
    ):
        if figures:
            found.append((title, _accuracy_cells(figures)))
            found.append((f"{title.partition(';')[0]}: what it takes", _cost_cells(figures)))
    if report.scenarios:
        found.append(("Past questions by scenario (%)", _scenario_cells(report)))
    if report.ages:
        found.append(("By age of the evidence (%)", _age_cells(report)))
    return found


def _selection_tables(selection: Selection) -> list[tuple[str, _Cells]]:
    found: list[tuple[str, _Cells]] = []
    if selection.modes:
        found.append(("Choice of units (%)", _mode_cells(selection)))
        found.append(("Retrieval less each (points)", _mode_difference_cells(selection)))
    if selection.lengths:
        rows = [(length_name(f), str(f.right), str(f.retrieval)) for f in selection.lengths]
        found.append(("Past by units there were (%)", [("", "full attention", "retrieval"), *rows]))
    if selection.layers:
        found.append(("Known spans of evidence that a layer read (%)", _layer_cells(selection)))
    if selection.ways:
        cells = [
            (f.mode, _number(f.context_tokens), _ms(f.ttft_s), _ms(f.quiet_ttft_s))
            for f in selection.ways
        ]
        found.append(
            ("Choice of units: what it takes", [("", "tokens", "TTFT ms", "alone ms"), *cells])
        )
    return found


def _mode_cells(selection: Selection) -> _Cells:
    found = {(f.mode, f.group): f.right for f in selection.modes}
    modes = dict.fromkeys(figure.mode for figure in selection.modes)
    rows = [(mode, *(_share(found.get((mode, group))) for group in GROUPS)) for mode in modes]
    return [("", *GROUPS), *rows]


def _mode_difference_cells(selection: Selection) -> _Cells:
    found = {(f.mode, f.group): f.difference for f in selection.modes}
    modes = list(dict.fromkeys(figure.mode for figure in selection.modes))[1:]
    rows = [(mode, *(_share(found.get((mode, group))) for group in GROUPS)) for mode in modes]
    return [("", *GROUPS), *rows]


def _layer_cells(selection: Selection) -> _Cells:
    count = len(selection.layers[0].layers)
    rows = [
        (
            f"{f.group}: {f.mode} (n={f.asked})",
            *(f"{100 * value:.1f}" for value in (*f.layers, f.any_layer)),
        )
        for f in selection.layers
    ]
    return [("", *(f"layer {i}" for i in range(count)), "any"), *rows]


def _accuracy_cells(figures: Sequence[Figure]) -> _Cells:
    rows = [
        (f.name, str(f.past), str(f.past_difference), str(f.now), str(f.now_difference))
        for f in figures
    ]
    return [("", "past %", "difference", "now %", "difference"), *rows]


def _cost_cells(figures: Sequence[Figure]) -> _Cells:
    rows = [
        (
            figure.name,
            _percent(figure.dropped),
            _number(figure.bytes_per_hour / 2**20),
            _percent(figure.recall),
            _number(figure.context_tokens),
            _ms(figure.ttft_s),
            _ms(figure.quiet_ttft_s),
        )
        for figure in figures
    ]
    return [("", "dropped", "MiB/h", "recall", "tokens", "TTFT ms", "alone ms"), *rows]


def _scenario_cells(report: Report) -> _Cells:
    names = list(dict.fromkeys(figure.scenario for figure in report.scenarios))
    arms = dict.fromkeys(figure.arm for figure in report.scenarios)
    found = {(f.arm, f.scenario): f.right for f in report.scenarios}
    rows = [(arm, *(_share(found.get((arm, name))) for name in names)) for arm in arms]
    return [("", *names), *rows]


def _age_cells(report: Report) -> _Cells:
    ages = sorted({figure.age_s for figure in report.ages})
    modes = dict.fromkeys(figure.mode for figure in report.ages)
    found = {(f.mode, f.age_s): f.right for f in report.ages}
    rows = [(mode, *(_share(found.get((mode, age))) for age in ages)) for mode in modes]
    return [("", *(_age(age) for age in ages)), *rows]


def _age(age_s: int) -> str:
    if age_s < 60:
        return f"{age_s} s" if age_s else "now"
    return f"{age_s / 60:g} min" if age_s < 3600 else f"{age_s / 3600:.3g} h"


def _share(counted: object) -> str:
    return "-" if counted is None else str(counted)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _ms(seconds: float) -> str:
    return _number(1000 * seconds)


def _html_table(cells: _Cells) -> str:
    def row(tag: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values) + "</tr>"

    return (
        "<table>\n"
        + "\n".join([row("th", cells[0]), *(row("td", r) for r in cells[1:])])
        + ("\n</table>")
    )
