"""Asking as people do: about now, about earlier, and again about the same moments.

`python -m eval.streamworld.revisit INGEST QA` pushes generated streams to a running service, all at
once, faster than they would play, and asks about them meanwhile and afterwards. Some streams are
asked much more than others. It is what `lookback bench ram --record` was run beside, for the trace
of reads in the repository.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.streamworld.clip_file import write_mp4
from eval.streamworld.exam import Question, make_exam
from eval.streamworld.seeds import generator
from svc.client import (
    LookbackClient,
    LookbackError,
    PushProgress,
    RetrievalOptions,
    SessionSettings,
)
from svc.video.sources import open_source

_ABOUT_NOW, _ABOUT_EARLIER = 0.3, 0.3
"""Shares of the questions; the others ask again about what was asked lately."""
_LATELY = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What is asked of one service."""

    seed: int
    stream_count: int
    duration_s: float
    speed: float
    """Times faster than it plays."""
    question_count: int
    budget: int
    """Units in context."""


class _Stream:
    """One session: how far it is, and what can be asked about it."""

    def __init__(self, name: str, questions: Sequence[Question]) -> None:
        self.name = name
        self.questions = questions
        self.visible_s = 0.0
        self.asked: list[Question] = []

    def askable(self) -> list[Question]:
        """Questions whose evidence is there."""
        return [
            question
            for question in self.questions
            if all(end_s <= self.visible_s for _, end_s in question.evidence_s)
        ]


async def revisit(client: LookbackClient, plan: Round, folder: Path) -> int:
    """Pushes and asks; returns how many questions were answered.

    Args:
        client: of the service.
        plan: what to do; equal plans ask much the same (what is visible when is not in their hand).
        folder: for clips.
    """
    rng = generator("evaluation", plan.seed, 7)
    streams = []
    async with asyncio.TaskGroup() as group:
        for number in range(plan.stream_count):
            exam = make_exam(
                seed=plan.seed * 1000 + number,
                duration_s=plan.duration_s,
                questions_per_kind=12,
            )
            stream = _Stream(f"revisit-{plan.seed}-{number}", exam.questions)
            path = folder / f"{stream.name}.mp4"
            await asyncio.to_thread(write_mp4, exam.clip, path, fps=exam.fps)
            streams.append(stream)
        for stream in streams:
            group.create_task(_push(client, stream, folder, plan))
        asking = group.create_task(_ask(client, streams, plan, rng))
    return asking.result()


async def _push(client: LookbackClient, stream: _Stream, folder: Path, plan: Round) -> None:
    await client.create_session(stream.name, settings=SessionSettings(sample_fps=1.0))
    source = open_source(str(folder / f"{stream.name}.mp4"))
    async for event in client.push(stream.name, source, speed=plan.speed):
        if isinstance(event, PushProgress) and event.visible_pts_s is not None:
            stream.visible_s = event.visible_pts_s
    stream.visible_s = plan.duration_s


async def _ask(
    client: LookbackClient, streams: Sequence[_Stream], plan: Round, rng: np.random.Generator
) -> int:
    shares = 1 / np.arange(1, len(streams) + 1)
    shares /= shares.sum()
    pause_s = 1.5 * plan.duration_s / plan.speed / plan.question_count
    answered_count = 0
    while answered_count < plan.question_count:
        await asyncio.sleep(pause_s)
        stream = streams[int(rng.choice(len(streams), p=shares))]
        known = stream.askable()
        if not known:
            continue
        draw = rng.random()
        if draw < _ABOUT_NOW or not stream.asked:
            question = known[int(rng.integers(len(known)))]
        elif draw < _ABOUT_NOW + _ABOUT_EARLIER:
            question = known[int(rng.integers(len(known)))]
            stream.asked.append(question)
        else:
            question = stream.asked[-1 - int(rng.integers(min(_LATELY, len(stream.asked))))]
        if not stream.asked:
            stream.asked.append(question)
        try:
            await client.answer(
                stream.name,
                question.text,
                retrieval=RetrievalOptions(unit_count=plan.budget),
            )
        except LookbackError as error:
            if error.reason != "SESSION_EMPTY":
                raise
            continue
        answered_count += 1
    return answered_count


def main() -> None:
    """Runs one round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("addresses", nargs=2, metavar="HOST:PORT", help="ingest, then QA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--duration-s", type=float, default=900.0)
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=16)
    arguments = parser.parse_args()
    plan = Round(
        seed=arguments.seed,
        stream_count=arguments.streams,
        duration_s=arguments.duration_s,
        speed=arguments.speed,
        question_count=arguments.questions,
        budget=arguments.budget,
    )

    async def run(folder: Path) -> int:
        async with LookbackClient(*arguments.addresses) as client:
            return await revisit(client, plan, folder)

    with tempfile.TemporaryDirectory(prefix="lookback-revisit-") as name:
        count = asyncio.run(run(Path(name)))
    sys.stdout.write(f"{count} questions answered\n")


if __name__ == "__main__":
    main()
