"""Commands around the service: `evaluate`; `clip` and `export-benchmark` for whoever pushes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

from rich.console import Console

from eval.streamworld.benchmark_file import write_benchmark
from eval.streamworld.clip_file import write_mp4
from eval.streamworld.evaluate import Plan, evaluate, progress_bar, read_records
from eval.streamworld.exam import make_exam
from eval.streamworld.scenarios import SCENARIOS
from eval.streamworld.service import Addresses, own_service
from eval.streamworld.summary import Record, print_accuracy, rows
from svc.client import LookbackClient
from svc.report import print_rows, write_rows

_DURATIONS_S = (300, 600, 900, 1200, 1800, 2700, 3600)


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="accuracy through the service, beside the baselines",
        description="Pushes held-out streams to the service and asks about them, as retrieval "
        "and as six baselines. Goes on where an earlier run with the same options stopped.",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streams", type=int, default=24, help="how many streams")
    parser.add_argument(
        "--durations-s", type=int, nargs="+", default=list(_DURATIONS_S), help="taken in turn"
    )
    parser.add_argument("--questions-per-kind", type=int, default=4, help="in each stream")
    parser.add_argument("--budget", type=int, default=8, help="units in context")
    parser.add_argument("--window-units", type=int, default=16, help="units of the window")
    parser.add_argument("--grid-px", type=int, default=1, help="objects start at multiples of it")
    parser.add_argument("--model", default="builtin", help="model that an own service serves")
    parser.add_argument(
        "--addresses", nargs=2, metavar=("INGEST", "QA"), help="a service that runs already"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("eval/results/streamworld.jsonl"), help="every answer"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.set_defaults(command=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    plan = Plan(
        seed=arguments.seed,
        stream_count=arguments.streams,
        durations_s=tuple(arguments.durations_s),
        questions_per_kind=arguments.questions_per_kind,
        budget=arguments.budget,
        window_units=arguments.window_units,
        grid_px=arguments.grid_px,
    )
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lookback-evaluate-") as folder:
        try:
            records = _run(plan, arguments, Path(folder))
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here")
            records = read_records(arguments.out, plan)
    print_accuracy(records, console)
    figures = rows(records)
    print_rows("StreamWorld through the service", figures, console)
    if arguments.json:
        write_rows(arguments.json, "streamworld", figures)


def _run(plan: Plan, arguments: argparse.Namespace, folder: Path) -> list[Record]:
    with contextlib.ExitStack() as stack:
        if arguments.addresses:
            addresses = Addresses(*arguments.addresses)
        else:
            service = own_service(folder / "data", folder / "service.log", arguments.model)
            addresses = stack.enter_context(service).addresses
        return asyncio.run(_ask_service(plan, arguments.out, folder, addresses))


async def _ask_service(plan: Plan, out: Path, folder: Path, addresses: Addresses) -> list[Record]:
    async with LookbackClient(addresses.ingest, addresses.qa) as client:
        with progress_bar() as progress:
            return await evaluate(client, plan, out, folder, progress)


def add_clip(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `clip`."""
    parser = commands.add_parser("clip", help="write a held-out clip and questions about it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="another number, another clip")
    parser.add_argument("--length-s", type=int, default=360, help="seconds of video, at least 120")
    parser.add_argument("--fps", type=int, default=4, help="frames a second in the file")
    parser.add_argument("--questions-per-kind", type=int, default=2, help="questions of each kind")
    parser.add_argument("--grid-px", type=int, default=1, help="objects start at multiples of it")
    parser.set_defaults(command=_clip)


def _clip(arguments: argparse.Namespace) -> None:
    try:
        exam = make_exam(
            seed=arguments.seed,
            duration_s=arguments.length_s,
            questions_per_kind=arguments.questions_per_kind,
            grid_px=arguments.grid_px,
        )
    except ValueError as error:
        raise SystemExit(f"--length-s {arguments.length_s}: {error}") from error
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_mp4(
        exam.clip,
        arguments.out / "clip.mp4",
        fps=Fraction(arguments.fps),
        hold=int(arguments.fps / exam.fps),
    )
    questions = [
        {
            "kind": question.kind,
            "question": question.text,
            "answer": question.answer,
            "options": question.options,
            "asked_at_s": question.asked_at_s,
            "evidence_s": question.evidence_s,
        }
        for question in exam.questions
    ]
    content = {"clip": "clip.mp4", "length_s": arguments.length_s, "questions": questions}
    (arguments.out / "questions.json").write_text(json.dumps(content, indent=1) + "\n")
    sys.stdout.write(
        f"{arguments.out / 'clip.mp4'}: {arguments.length_s} s of video\n"
        f"{arguments.out / 'questions.json'}: {len(questions)} questions with their answers\n"
    )


def add_export_benchmark(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `export-benchmark`."""
    parser = commands.add_parser(
        "export-benchmark",
        help="write held-out streams and questions in StreamingBench's layout",
        description="Writes questions_real.json as StreamingBench has it, videos/, and the spans "
        "of evidence beside it as evidence.json.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="another number, other streams")
    parser.add_argument("--streams", type=int, default=12, help="how many videos")
    parser.add_argument(
        "--durations-s", type=int, nargs="+", default=[300, 900, 3600], help="taken in turn"
    )
    parser.add_argument("--questions-per-kind", type=int, default=2, help="in each video")
    parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="taken in turn"
    )
    parser.set_defaults(command=_export_benchmark)


def _export_benchmark(arguments: argparse.Namespace) -> None:
    try:
        count = write_benchmark(
            arguments.out,
            seed=arguments.seed,
            stream_count=arguments.streams,
            durations_s=arguments.durations_s,
            questions_per_kind=arguments.questions_per_kind,
            scenarios=arguments.scenarios,
        )
    except ValueError as error:
        raise SystemExit(f"export-benchmark: {error}") from error
    sys.stdout.write(
        f"{arguments.out / 'questions_real.json'}: {count} questions, {arguments.streams} videos\n"
        f"{arguments.out / 'evidence.json'}: when each answer was to be seen\n"
    )
