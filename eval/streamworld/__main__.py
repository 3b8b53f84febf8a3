"""Command line: `python -m eval.streamworld COMMAND`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.ablate_command import add_ablate
from eval.streamworld.calibrate import add_calibrate
from eval.streamworld.card import model_card
from eval.streamworld.converse import add_converse
from eval.streamworld.export import RECOMMENDED, export
from eval.streamworld.launch import launch
from eval.streamworld.lines import OtherRunError
from eval.streamworld.measure import Serving, figures, measure, table
from eval.streamworld.model import TOKENS_PER_FRAME
from eval.streamworld.recipe import Recipe
from eval.streamworld.service_commands import add_clip, add_evaluate, add_export_benchmark
from eval.streamworld.trainer import STATE_FILE, Run, read_state, resumed_recipe, trained_model


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser("train", help="train the built-in model")
    train.add_argument("--out", type=Path, required=True, help="directory of the run")
    train.add_argument("--seed", type=int, default=0, help="of a new run")
    train.add_argument("--minutes", type=float, help="most minutes of training time")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    train.add_argument("--vision-steps", type=int)
    train.add_argument("--drill-steps", type=int)
    train.add_argument("--general-steps", type=int)
    train.add_argument("--memory-steps", type=int)
    train.add_argument("--start", type=Path, help="exported checkpoint: only the last stage runs")
    train.set_defaults(command=_train)


def _train(arguments: argparse.Namespace) -> None:
    lengths = {
        name: value
        for name in ("vision_steps", "drill_steps", "general_steps", "memory_steps")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.resume:
        recipe = resumed_recipe(arguments.out, **lengths)
        seed = read_state(arguments.out)["seed"]
    elif (arguments.out / STATE_FILE).exists():
        raise SystemExit(f"{arguments.out} already holds a run: pass --resume or another --out")
    else:
        recipe, seed = Recipe(**lengths), arguments.seed
    run = Run(
        directory=arguments.out, seed=seed, recipe=recipe, minutes=arguments.minutes,
        start=None if arguments.resume else arguments.start,
    )  # fmt: skip
    launch(run, processes=arguments.processes, resume=arguments.resume)


def _add_measure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    measure = commands.add_parser("measure", help="accuracy by kind, without the service")
    source = measure.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="directory of a training run")
    source.add_argument("--model", type=Path, help="exported checkpoint")
    measure.add_argument("--duration-s", type=float, nargs="+", default=[300.0])
    measure.add_argument("--clips", type=int, default=5)
    measure.add_argument("--first-seed", type=int, default=0)
    measure.add_argument("--questions-per-kind", type=int, default=2)
    measure.add_argument("--grid-px", type=int, default=1)
    measure.add_argument("--window-frames", type=int, default=16)
    measure.add_argument("--retrieved", type=int, default=7, help="beside the newest frame")
    measure.add_argument("--crf", type=int, help="through H.264 at this quality")
    measure.add_argument("--json", type=Path, help="also write the figures to this file")
    measure.set_defaults(command=_measure)


def _measure(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if arguments.run is not None:
        model = trained_model(arguments.run)
    else:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            arguments.model, dtype=torch.float32
        )
    serving = Serving(
        window_frames=arguments.window_frames, retrieved=arguments.retrieved, crf=arguments.crf
    )
    rows: list[dict[str, Any]] = []
    for duration_s in arguments.duration_s:
        graded = measure(
            model,
            seeds=range(arguments.first_seed, arguments.first_seed + arguments.clips),
            duration_s=duration_s, questions_per_kind=arguments.questions_per_kind,
            grid_px=arguments.grid_px, serving=serving,
        )  # fmt: skip
        rows += (found := figures(graded, serving, duration_s))
        sys.stdout.write(f"{duration_s:g} s, {arguments.clips} clips\n{table(found)}\n")
        sys.stdout.flush()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser("export", help="write a run's model as a Hugging Face folder")
    export.add_argument("--run", type=Path, required=True, help="directory of a training run")
    export.add_argument("--out", type=Path, required=True, help="checkpoint folder to replace")
    export.add_argument("--figures", type=Path, help="JSON of `measure` for the model card")
    export.add_argument("--history", default="", help="a remark on the run for the model card")
    export.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> None:
    model, saved = trained_model(arguments.run), read_state(arguments.run)
    rows = json.loads(arguments.figures.read_text()) if arguments.figures else []
    card = model_card(
        recipe=saved["recipe"], seed=saved["seed"], figures=rows, history=arguments.history,
        parameters=sum(p.numel() for p in model.parameters()), recommended=RECOMMENDED,
        tokens_per_frame=TOKENS_PER_FRAME,
    )  # fmt: skip
    export(model, arguments.out, card=card)


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(prog="python -m eval.streamworld")
    commands = parser.add_subparsers(required=True)
    _add_train(commands)
    _add_measure(commands)
    _add_export(commands)
    add_evaluate(commands)
    add_clip(commands)
    add_export_benchmark(commands)
    add_converse(commands)
    add_ablate(commands)
    add_calibrate(commands)
    arguments = parser.parse_args()
    try:
        arguments.command(arguments)
    except OtherRunError as error:
        raise SystemExit(f"error: {error}; take another --out") from error


if __name__ == "__main__":
    main()
