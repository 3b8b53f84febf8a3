"""`lookback eval`, found by the command line through the entry points `lookback.commands`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eval.streamworld.curves import CURVES, BenchmarkPlan
from eval.streamworld.report_command import Options, run_report
from eval.streamworld.results_file import ResultsError
from eval.streamworld.service import ServiceFailedError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PLAN = BenchmarkPlan()


def run(arguments: Sequence[str]) -> int:
    """Runs `lookback eval` with the arguments that follow it; returns the exit status."""
    status = app(list(arguments), prog_name="lookback eval", standalone_mode=False)
    return status if isinstance(status, int) else 0


@app.callback()
def _eval() -> None:
    """Measure accuracy through the service, on held-out streams."""


@app.command()
def streamworld(
    seed: Annotated[int, typer.Option(min=0, help="Another number, other streams.")] = 0,
    selection_streams: Annotated[
        int, typer.Option(min=0, help="Streams of `selection`; 180 ask some 4,000 questions.")
    ] = 180,
    streams: Annotated[int, typer.Option(min=0, help="Streams of the other curves.")] = 12,
    long_streams: Annotated[int, typer.Option(min=0, help="Streams of up to four hours.")] = 2,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many of each: 1 takes minutes.")
    ] = None,
    curve: Annotated[
        list[str] | None,
        typer.Option(metavar="|".join(CURVES), help="Only this curve; may be given again."),
    ] = None,
    duration_s: Annotated[
        list[int] | None, typer.Option(help="Lengths of streams that are not long, in turn.")
    ] = None,
    long_duration_s: Annotated[
        list[int] | None, typer.Option(help="Lengths of long streams, in turn.")
    ] = None,
    questions_per_kind: Annotated[
        int, typer.Option(min=1, help="In each stream.")
    ] = _PLAN.questions_per_kind,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Where answers.jsonl and report.html go.")
    ] = Path("streamworld-report"),
    figures: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Also write figures as README's tables are made from."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Also write accuracy against bytes: an .svg file."),
    ] = None,
    addresses: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="INGEST QA", help="A service that runs; else one is started."),
    ] = None,
    model: Annotated[str, typer.Option(help="What an own service serves.")] = "builtin",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Accuracy by choice of units, reduction, element type, budget and age, with baselines.

    Each curve varies one thing; `selection` holds what is claimed of the memory. Every answer is
    appended to OUT/answers.jsonl; the same command goes on where it was stopped, and the report is
    made from that file alone.
    """
    if unknown := sorted(set(curve or ()) - set(CURVES)):
        raise typer.BadParameter(f"no curve is called {unknown[0]!r}", param_hint="--curve")
    if plot is not None and plot.suffix != ".svg":
        raise typer.BadParameter(f"must end in .svg, got {plot.name!r}", param_hint="--plot")
    plan = BenchmarkPlan(
        seed=seed,
        durations_s=tuple(duration_s or _PLAN.durations_s),
        long_durations_s=tuple(long_duration_s or _PLAN.long_durations_s),
        questions_per_kind=questions_per_kind,
        model=model if addresses is None else "of the service",
    )
    options = Options(
        plan=plan,
        curves=tuple(name for name in CURVES if not curve or name in curve),
        selection_stream_count=min(selection_streams, limit or selection_streams),
        stream_count=min(streams, limit or streams),
        long_stream_count=min(long_streams, limit or long_streams),
        folder=out,
        addresses=addresses,
        figures=figures,
        plot=plot,
    )
    console = Console(stderr=True) if json_output else Console()
    try:
        report = run_report(options, console, print_tables=not json_output)
    except (ResultsError, ServiceFailedError, ValueError) as error:
        name = {ResultsError: "RESULTS", ServiceFailedError: "SERVICE_FAILED"}
        sys.stderr.write(f"error: {name.get(type(error), 'USAGE')}: {error}\n")
        raise typer.Exit(1) from error
    if json_output:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
