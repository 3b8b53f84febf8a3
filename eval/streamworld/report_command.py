"""A benchmark run from start to report: the service, the questions, the tables and the page."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from eval.streamworld.benchmark import ServiceOf, run_benchmark
from eval.streamworld.curves import BenchmarkPlan, CurveName, Encoding
from eval.streamworld.report_figures import Report, report_of
from eval.streamworld.report_page import page, print_report
from eval.streamworld.report_plots import pareto_drawing
from eval.streamworld.report_rows import benchmark_rows
from eval.streamworld.results_file import ResultsFile
from eval.streamworld.service import Addresses, own_service
from svc.report import write_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run and where it goes."""

    plan: BenchmarkPlan
    curves: tuple[CurveName, ...]
    selection_stream_count: int
    stream_count: int
    long_stream_count: int
    folder: Path
    """Of answers.jsonl and report.html."""
    addresses: tuple[str, str] | None
    """Of a service that runs already; None: one is started per element type."""
    figures: Path | None = None
    """Where the figures that README's tables are made from go."""
    plot: Path | None = None
    """Where the plot of accuracy against bytes goes."""


def run_report(options: Options, console: Console, *, print_tables: bool) -> Report:
    """Asks what has not been asked yet, and reports on all there is.

    Raises:
        KeyboardInterrupt: It was stopped; the report on what there is was made.
        ResultsError, ServiceFailedError, LookbackError, ValueError: It could not go on.
    """
    plan = options.plan
    streams = plan.streams(
        selection_count=options.selection_stream_count if "selection" in options.curves else 0,
        mixed_count=options.stream_count,
        long_count=options.long_stream_count,
    )
    for stream in streams:
        plan.exam(stream)  # a length that does not fit is told before anything runs
    notes: list[str] = []
    stopped = False
    with (
        ResultsFile(options.folder / "answers.jsonl", plan.digest) as results,
        tempfile.TemporaryDirectory(prefix="lookback-eval-") as name,
    ):
        services = _services(options, Path(name), console)
        try:
            with _progress(console) as progress:
                notes = run_benchmark(
                    plan, options.curves, streams, results, Path(name), services, progress
                )
        except KeyboardInterrupt:
            stopped = True
        report = report_of(results.rows)
    if print_tables:
        print_report(report, console)
    for note in notes:
        console.print(f"left out: {note}")
    path = options.folder / "report.html"
    path.write_text(page(report, notes))
    console.print(f"{path}: the curves", soft_wrap=True)
    if options.figures is not None:
        write_rows(options.figures, "streamworld benchmark", benchmark_rows(report))
    if options.plot is not None:
        options.plot.write_text(pareto_drawing(report))
    if stopped:
        console.print("stopped; the same command goes on from here")
        raise KeyboardInterrupt
    return report


def _services(options: Options, folder: Path, console: Console) -> ServiceOf:
    if options.addresses is not None:
        addresses = Addresses(*options.addresses)
        return lambda _: contextlib.nullcontext(addresses)

    @contextlib.contextmanager
    def own(encoding: Encoding) -> Iterator[Addresses]:
        console.print(f"starting a service that stores keys and values as {encoding}")
        with own_service(
            folder / encoding,
            folder / f"{encoding}.log",
            options.plan.model,
            {"kv_encoding": encoding},
        ) as service:
            yield service.addresses

    return own


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
    )
