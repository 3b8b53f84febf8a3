"""Command line: `python -m eval.streamworld calibrate`: how hard token reduction may drop.

A preset promises an accuracy, and what it drops follows from the stream: `light` costs nothing
that can be measured, `balanced` at most a point of questions about past and present, `aggressive`
two and a half. Streams of all scenarios, so that a stream's stillness is not the preset's merit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.streamworld.ablation_table import paired_interval
from eval.streamworld.exam_answers import as_served, graded
from eval.streamworld.exam_memory import StreamMemory, encode_stream, whole_units
from eval.streamworld.lines import read_lines, resumed
from eval.streamworld.scenarios import PAST_KINDS, SCENARIOS, Scenario, make_scenario
from eval.streamworld.wording import NOW_KINDS
from svc.engine.answer import AnswerEngine
from svc.engine.model import LoadedModel, load_model
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.serving import ServingDefaults, model_config, serving_defaults
from svc.engine.window import WindowConfig

WHOLE = "none"
STRENGTHS: Mapping[str, Sequence[float]] = {
    "last_kept": (0.95, 0.8, 0.7, 0.6, 0.5, 0.4),
    "dtd": (0.95, 0.8, 0.7, 0.6, 0.5, 0.4),
    "dtd_pixel": (0.001, 0.005, 0.02),
    "budget": (0.5, 0.3, 0.2, 0.1),
    "key_norm": (0.7, 0.6, 0.5, 0.4, 0.3),
}


def add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    names = [WHOLE, *(f"{policy}:{x:g}" for policy, many in STRENGTHS.items() for x in many)]
    calibrate = commands.add_parser("calibrate", help="what strengths of token reduction cost")
    calibrate.add_argument("--model", default="builtin", help="as the service names it")
    calibrate.add_argument("--seed", type=int, default=990_000, help="of the first stream")
    calibrate.add_argument("--streams", type=int, default=12, help="of the scenarios in turn")
    calibrate.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    calibrate.add_argument("--duration-s", type=float, default=400.0)
    calibrate.add_argument("--questions-per-kind", type=int, default=4)
    calibrate.add_argument("--reduction", nargs="+", default=names)
    calibrate.add_argument(
        "--out", type=Path, required=True, help="JSON lines; goes on where it ends"
    )
    calibrate.set_defaults(command=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    config = model_config(arguments.model, "float32", "cpu")
    model, defaults = load_model(config, vision=True), serving_defaults(config)
    specs = [
        ReductionSpec.parse(name, defaults.reduction_presets)
        for name in dict.fromkeys([WHOLE, *arguments.reduction])
    ]
    plan = {
        "model": model.digest, "duration_s": arguments.duration_s,
        "questions_per_kind": arguments.questions_per_kind, "scenarios": arguments.scenario,
    }  # fmt: skip
    for number in range(arguments.streams):
        stream = Stream(
            seed=arguments.seed + number,
            scenario=arguments.scenario[number % len(arguments.scenario)],
        )
        for line in _missing(stream, plan, specs, model, defaults, arguments.out):
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
        sys.stderr.write(f"{stream.scenario}, seed {stream.seed}\n")
    lines = read_lines(arguments.out)
    sys.stdout.write(f"{table(lines)}\n\n{drift_table(lines)}\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One generated stream."""

    seed: int
    scenario: Scenario


def _missing(
    stream: Stream,
    plan: Mapping[str, Any],
    specs: Sequence[ReductionSpec],
    model: LoadedModel,
    defaults: ServingDefaults,
    out: Path,
) -> Iterator[dict[str, Any]]:
    """Yield what the file lacks of one stream, a line a reduction."""
    done = [line["reduction"] for line in resumed(out, plan) if line["seed"] == stream.seed]
    wanted = [spec for spec in dict.fromkeys(specs) if str(spec) not in done]
    if not wanted:
        return
    exam = make_scenario(
        stream.scenario, seed=stream.seed, duration_s=plan["duration_s"],
        fps=Fraction(1), questions_per_kind=plan["questions_per_kind"],
    )  # fmt: skip
    units = whole_units(model, exam)
    window = WindowConfig(
        window_tokens=defaults.window_tokens, window_positions=defaults.window_positions
    )
    for spec in wanted:
        stored = encode_stream(model, window, units, spec)
        memory = StreamMemory(stream=stored, index=stored.rows, unit_count=0)
        asked = graded(
            AnswerEngine(model),
            memory,
            exam.questions,
            {"unit_count": defaults.retrieved_units, **as_served(spec)},
        )
        whole = model.adapter.tokens_per_unit * len(stored.token_counts)
        yield {
            "plan": plan,
            "seed": stream.seed,
            "scenario": stream.scenario,
            "reduction": str(spec),
            "dropped": 1 - int(stored.token_counts.sum()) / whole,
            "questions": list(asked),
        }


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: a row a reduction, differences to whole units paired by question."""
    text = [
        "| reduction | dropped | past | now | both, less whole | 95 % |",
        "|---|---|---|---|---|---|",
    ]
    whole = {line["seed"]: line for line in lines if line["reduction"] == WHOLE}
    for reduction in dict.fromkeys(line["reduction"] for line in lines):
        own = [x for x in lines if x["reduction"] == reduction and x["seed"] in whole]
        if not own:
            continue
        differences = [
            _right(line, PAST_KINDS + NOW_KINDS)
            - _right(whole[line["seed"]], PAST_KINDS + NOW_KINDS)
            for line in own
        ]
        value, low, high = paired_interval(differences)
        past, now = (
            float(np.mean(np.concatenate([_right(line, kinds) for line in own])))
            for kinds in (PAST_KINDS, NOW_KINDS)
        )
        dropped = np.mean([line["dropped"] for line in own])
        text.append(
            f"| {reduction} | {dropped:.3f} | {past:.3f} | {now:.3f} "
            f"| {value:+.3f} | {low:+.3f} to {high:+.3f} |"
        )
    return "\n".join(text)


def drift_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: questions about what a slow change led to, `last_kept` beside `dtd`."""
    text = [
        "| strength | last_kept | dtd | last_kept, less dtd | 95 % | questions |",
        "|---|---|---|---|---|---|",
    ]
    found = {(line["seed"], line["reduction"]): _after_drift(line) for line in lines}
    for strength in STRENGTHS["dtd"]:
        names = f"last_kept:{strength:g}", f"dtd:{strength:g}"
        seeds = [s for s, name in found if name == names[0] and len(found.get((s, names[1]), ()))]
        if not seeds:
            continue
        ours, theirs = ([found[seed, name] for seed in seeds] for name in names)
        value, low, high = paired_interval([a - b for a, b in zip(ours, theirs, strict=True)])
        shares = [float(np.mean(np.concatenate(each))) for each in (ours, theirs)]
        count = sum(len(each) for each in ours)
        text.append(
            f"| {strength:g} | {shares[0]:.3f} | {shares[1]:.3f} "
            f"| {value:+.3f} | {low:+.3f} to {high:+.3f} | {count} |"
        )
    return "\n".join(text)


_Rights = np.ndarray[Any, np.dtype[np.float64]]


def _right(line: Mapping[str, Any], kinds: Sequence[str]) -> _Rights:
    return np.array([float(q["right"]) for q in line["questions"] if q["kind"] in kinds])


def _after_drift(line: Mapping[str, Any]) -> _Rights:
    return np.array([float(q["right"]) for q in line["questions"] if q["drift"] == "after"])
