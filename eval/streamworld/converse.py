"""What conversations are worth: follow-ups through the service, with their turns and without."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rich.console import Console

from eval.streamworld.clip_file import write_mp4
from eval.streamworld.exam import make_exam
from eval.streamworld.follow_ups import SHAPES, FollowUp, follow_ups
from eval.streamworld.seeds import generator
from eval.streamworld.service import Addresses, own_service
from svc.client import (
    Answer,
    LookbackClient,
    PushReconnecting,
    RetrievalOptions,
    SessionSettings,
    Turn,
)
from svc.report import Row, print_rows, write_rows
from svc.video.sources import open_source

_FPS = Fraction(1)
_CRF = 23
_SESSION = "converse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One follow-up asked with its turns, or without."""

    shape: str
    with_turns: bool
    cited: bool
    """Whether the answer cites a moment that shows what was asked for."""
    right: bool


def add_converse(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `converse`."""
    parser = commands.add_parser("converse", help="follow-up questions, through the service")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--length-s", type=int, default=300, help="seconds of each, at least 120")
    parser.add_argument("--each", type=int, default=8, help="questions of each shape and clip")
    parser.add_argument("--budget", type=int, default=8, help="units in context")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="builtin", help="as `lookback serve --model` takes it")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.set_defaults(command=_converse)


def _converse(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="lookback-converse-") as name:
        folder = Path(name)
        with own_service(folder / "data", folder / "service.log", arguments.model) as service:
            outcomes = asyncio.run(_ask_service(arguments, folder, service.addresses))
    figures = rows(outcomes)
    print_rows("conversations", figures, Console())
    if arguments.json:
        write_rows(arguments.json, "conversations", figures)


async def _ask_service(
    arguments: argparse.Namespace, folder: Path, addresses: Addresses
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    async with LookbackClient(addresses.ingest, addresses.qa) as client:
        for number in range(arguments.clips):
            seed = arguments.seed * 100_000 + number
            clip = make_exam(seed=seed, duration_s=arguments.length_s, fps=_FPS).clip
            rng = generator("evaluation", seed, arguments.length_s, 1)
            path = folder / "clip.mp4"
            await asyncio.to_thread(write_mp4, clip, path, fps=_FPS, crf=_CRF)
            await client.create_session(_SESSION, settings=SessionSettings(sample_fps=float(_FPS)))
            async with contextlib.aclosing(client.push(_SESSION, open_source(str(path)))) as events:
                async for event in events:
                    if isinstance(event, PushReconnecting):
                        raise event.error
            made = follow_ups(clip, _FPS, rng)
            drawn = [made[int(i)] for i in rng.permutation(len(made))]
            for shape in SHAPES:
                for each in [one for one in drawn if one.shape == shape][: arguments.each]:
                    outcomes += await _both_ways(client, each, arguments.budget)
            await client.delete_session(_SESSION)
    return outcomes


async def _both_ways(client: LookbackClient, asked: FollowUp, budget: int) -> list[Outcome]:
    turns = [Turn(question=question, answer=answer) for question, answer in asked.turns]
    found = []
    for history in (turns, []):
        answer = await client.answer(
            _SESSION,
            asked.question,
            asked_at_s=asked.asked_at_s,
            history=history,
            retrieval=RetrievalOptions(unit_count=budget),
        )
        found.append(
            Outcome(
                shape=asked.shape,
                with_turns=bool(history),
                cited=cites(answer, asked.evidence_s),
                right=answer.text.strip() == asked.answer,
            )
        )
    return found


def cites(answer: Answer, spans: Iterable[tuple[float, float]]) -> bool:
    """Whether one of an answer's moments overlaps one of the spans."""
    return any(a < e.end_s and e.start_s < b for a, b in spans for e in answer.evidence)


def rows(outcomes: list[Outcome]) -> list[Row]:
    """Two rows a shape: moments cited, and answers right, beside the question without its turns."""
    groups: dict[tuple[str, bool], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.shape, outcome.with_turns].append(outcome)
    made = []
    for shape in SHAPES:
        asked, alone = groups[shape, True], groups[shape, False]
        if not asked:
            continue
        for what, name in (("cited", "moment cited"), ("right", "answer right")):
            share, base = (sum(getattr(o, what) for o in g) / len(g) for g in (asked, alone))
            made.append(
                Row(
                    name=f"{shape} (n={len(asked)}): {name}; beside without turns",
                    value=share,
                    unit="share",
                    baseline=base,
                    ratio=share / base if base else None,
                )
            )
    return made
