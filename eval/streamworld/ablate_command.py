"""Command line: `python -m eval.streamworld ablate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from eval.streamworld.ablation import BASE, VARIANTS, Ablation, run
from eval.streamworld.ablation_table import table
from eval.streamworld.lines import read_lines
from svc.engine.model import load_model
from svc.engine.serving import model_config, serving_defaults


def add_ablate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    ablate = commands.add_parser("ablate", help="what each rule of retrieval is worth")
    ablate.add_argument("--model", default="builtin", help="as the service names it")
    ablate.add_argument("--seed", type=int, default=810_000, help="of the first stream")
    ablate.add_argument("--streams", type=int, default=8)
    ablate.add_argument("--duration-s", type=float, nargs="+", default=[300.0])
    ablate.add_argument("--questions-per-kind", type=int, default=4)
    ablate.add_argument("--reduction", nargs="+", default=["none", "last_kept:0.7"])
    ablate.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    ablate.add_argument("--out", type=Path, required=True, help="JSON lines; goes on where it ends")
    ablate.set_defaults(command=_ablate)


def _ablate(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    config = model_config(arguments.model, "float32", "cpu")
    model = load_model(config, vision=True)
    for duration_s in arguments.duration_s:
        ablation = Ablation(
            first_seed=arguments.seed, stream_count=arguments.streams, duration_s=duration_s,
            questions_per_kind=arguments.questions_per_kind, reductions=arguments.reduction,
            variants=arguments.variant,
        )  # fmt: skip
        for done in run(ablation, model, serving_defaults(config), arguments.out):
            sys.stderr.write(done + "\n")
    sys.stdout.write(table(read_lines(arguments.out), BASE) + "\n")
