"""Command line: `python -m eval.streamworld train --out DIR`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from eval.streamworld.launch import launch
from eval.streamworld.recipe import Recipe
from eval.streamworld.trainer import STATE_FILE, Run, resumed_recipe


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser("train", help="train the built-in model")
    train.add_argument("--out", type=Path, required=True, help="directory of the run")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--minutes", type=float, help="most minutes of training time")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    train.add_argument("--vision-steps", type=int)
    train.add_argument("--drill-steps", type=int)
    train.add_argument("--general-steps", type=int)
    train.set_defaults(command=_train)


def _train(arguments: argparse.Namespace) -> None:
    lengths = {
        name: value
        for name in ("vision_steps", "drill_steps", "general_steps")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.resume:
        recipe = resumed_recipe(arguments.out, **lengths)
    elif (arguments.out / STATE_FILE).exists():
        raise SystemExit(f"{arguments.out} already holds a run: pass --resume or another --out")
    else:
        recipe = Recipe(**lengths)
    run = Run(
        directory=arguments.out, seed=arguments.seed, recipe=recipe, minutes=arguments.minutes
    )
    launch(run, processes=arguments.processes, resume=arguments.resume)


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(prog="python -m eval.streamworld")
    _add_train(parser.add_subparsers(required=True))
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
