"""`python -m eval.soak`: hours of stream through a store with half the disk and memory they need.

Two runs push the same generated streams, all at once, and put the same questions meanwhile: the
first to a store without limits, the second to one with half of what the first took. A run that came
to its end is kept in the work folder, and the same command goes on behind it; stores are removed
once every target is met.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from eval.soak.budgets import half_of
from eval.soak.figures import rows
from eval.soak.plan import LEAST_STREAM_S, ON_FULL, Plan, Stream
from eval.soak.run import Outcome, Run, Watch, read_outcome
from eval.streamworld.service import ServiceFailedError
from svc.client import LookbackError
from svc.report import Row, print_rows, write_rows

_INTERRUPTED = 130


class OutOfTimeError(Exception):
    """The streams were not through when time was up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a soak; returns 0 when every target is met, 1 when one is not."""
    options = _parser().parse_args(arguments)
    plan = Plan(
        seed=options.seed,
        session_count=options.sessions,
        stream_s=round(options.hours * 3600),
        question_every_s=options.question_every_s,
    )
    console = Console()
    try:
        figures = _soak(plan, options, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on behind the last finished run")
        return _INTERRUPTED
    except (OutOfTimeError, ServiceFailedError, LookbackError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print_rows(f"soak, on_full={options.mode}", figures, console)
    if options.json:
        write_rows(options.json, "soak", figures)
    missed = [row.name for row in figures if row.met is False]
    for name in missed:
        sys.stderr.write(f"missed: {name}\n")
    folder = options.work / plan.digest
    if missed:
        sys.stderr.write(f"stores, logs, samples and answers are in {folder}\n")
    else:
        for store in folder.glob("*/data"):
            shutil.rmtree(store)
    return int(bool(missed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.soak", description="A long run under half the disk and memory needed."
    )
    parser.add_argument("--hours", type=_hours, default=3.0, help="of stream, each session")
    parser.add_argument("--sessions", type=_positive, default=8, help="pushed at the same time")
    parser.add_argument("--minutes", type=float, default=30.0, help="most that both runs may take")
    parser.add_argument("--mode", choices=ON_FULL, default="thin", help="as LOOKBACK_ON_FULL")
    parser.add_argument(
        "--question-every-s", type=float, default=120.0, help="of each session's stream"
    )
    parser.add_argument("--sample-every-s", type=float, default=2.0, help="looks at the processes")
    parser.add_argument("--seed", type=int, default=0, help="another number, other streams")
    parser.add_argument("--work", type=Path, default=Path(".soak"), help="folder of clips and runs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _hours(text: str) -> float:
    hours = float(text)
    if not hours * 3600 >= LEAST_STREAM_S:
        raise argparse.ArgumentTypeError(
            f"must be at least {LEAST_STREAM_S / 3600:.3f} ({LEAST_STREAM_S} s), got {text}"
        )
    return hours


def _soak(plan: Plan, options: argparse.Namespace, console: Console) -> list[Row]:
    """Both runs, the first of them perhaps from an earlier time.

    Raises:
        OutOfTimeError: the streams were not through when time was up.
    """
    limit_s = 60 * options.minutes
    folder = options.work / plan.digest
    with _bars(console) as progress:
        streams = _streams(plan, options.work / "clips", progress)

        def run(name: str, settings: dict[str, object], left_s: float) -> Outcome:
            watch = Watch(
                sample_every_s=options.sample_every_s, give_up_at_s=time.monotonic() + left_s
            )
            outcome = Run(folder / name, streams, settings, watch, progress).outcome()
            return asyncio.run(outcome)

        whole = read_outcome(folder / "unbounded")
        if whole is None:
            whole = run("unbounded", {}, limit_s)
            planned_s = plan.session_count * plan.stream_s
            if whole.totals.pushed_s < planned_s:
                shutil.rmtree(folder / "unbounded")
                raise OutOfTimeError(
                    f"{whole.totals.pushed_s / 3600:.1f} of {planned_s / 3600:.1f} stream hours in "
                    f"{options.minutes:g} minutes, and a second run is to come: "
                    "give fewer --hours, or more --minutes"
                )
        else:
            found = f"the run without limits is in {folder / 'unbounded'}; remove it to repeat it"
            progress.console.print(found, soft_wrap=True)
        budgets = half_of(whole)
        settings = budgets.settings(options.mode)
        bounded = run(options.mode, settings, max(0.0, limit_s - whole.totals.took_s))
    return rows(plan, budgets, whole, bounded, options.minutes)


def _streams(plan: Plan, folder: Path, progress: Progress) -> list[Stream]:
    bar = progress.add_task("clips", total=plan.session_count, state="")
    streams = []
    for stream in plan.streams(folder):
        streams.append(stream)
        progress.advance(bar)
    return streams


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
        console=console,
        disable=not console.is_terminal,
    )


if __name__ == "__main__":
    sys.exit(main())
