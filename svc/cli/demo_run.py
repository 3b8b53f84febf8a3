"""The run of `lookback demo`: the main job on real video, in under a minute.

A clip is generated, two processes start, the clip is pushed as H.264 packets many times faster
than real time, and questions are asked while it runs: about now, and about what left the window.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from svc.child import ChildFailedError, ProcessName
from svc.cli.failures import CommandError
from svc.cli.times import format_time
from svc.client import Answer, LookbackClient, PushFinished, PushProgress, SessionSettings
from svc.config import Settings, read_settings
from svc.supervisor import Supervisor
from svc.video.sources import open_source

SESSION = "demo"
_LENGTH_S = 360
_LEAST_RIGHT_FRACTION = 10 / 12
# How many questions of each kind, and which ask about what has left the window.
_KINDS = {
    "now_object": 2,
    "now_colour": 2,
    "now_scene": 1,
    "past_object": 2,
    "past_colour": 2,
    "past_scene": 2,
    "motion": 1,
    "order": 1,
    "count": 1,
    "not_seen": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoQuestion:
    """A question with its answer, and when in the stream it is put."""

    kind: str
    text: str
    expected: str
    put_at_s: float
    """Stream time that must have been received before it is put."""
    asked_at_s: float
    """Stream time as of which it is asked; earlier than `put_at_s` once."""
    evidence_s: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A question and what came back."""

    question: DemoQuestion
    answer: Answer

    @property
    def right(self) -> bool:
        """Whether the answer is the expected one, to the letter."""
        return self.answer.text.strip() == self.question.expected


def run_demo(seed: int, speed: float, json_output: bool) -> int:
    """Runs the demo; returns the exit status: 0 where enough answers were right."""
    console = Console(stderr=json_output)
    with tempfile.TemporaryDirectory(prefix="lookback-demo-") as name:
        folder = Path(name)
        console.print(f"generating {_LENGTH_S // 60} minutes of video ...")
        _generate(folder, seed)
        questions = choose_questions(json.loads((folder / "questions.json").read_text()))
        settings = read_settings(
            data_dir=folder / "data", ingest_port=0, qa_port=0, log_level="ERROR"
        )
        try:
            outcomes, figures = asyncio.run(_run(folder, questions, settings, speed, console))
        except ChildFailedError as failure:
            raise CommandError("SERVICE_FAILED", str(failure)) from failure
    if json_output:
        answers = [_as_json(each) for each in outcomes]
        sys.stdout.write(json.dumps({"questions": answers, **figures}) + "\n")
    else:
        _print(outcomes, figures, console)
    right = sum(each.right for each in outcomes)
    console.print(f"{right} of {len(outcomes)} right")
    return int(right < _LEAST_RIGHT_FRACTION * len(outcomes))


def choose_questions(clip: dict[str, Any]) -> list[DemoQuestion]:
    """Takes the first questions of each kind, in order of time, and one asked again, as of then."""
    chosen: list[DemoQuestion] = []
    for kind, count in _KINDS.items():
        of_kind = [each for each in clip["questions"] if each["kind"] == kind]
        chosen += [
            DemoQuestion(
                kind=kind,
                text=each["question"],
                expected=each["answer"],
                put_at_s=each["asked_at_s"],
                asked_at_s=each["asked_at_s"],
                evidence_s=tuple((start, end) for start, end in each["evidence_s"]),
            )
            for each in of_kind[:count]
        ]
    chosen.sort(key=lambda question: question.put_at_s)
    now = next(question for question in chosen if question.kind == "now_object")
    return [*chosen, replace(now, put_at_s=float(clip["length_s"] - 1))]


def _generate(folder: Path, seed: int) -> None:
    command = [sys.executable, "-m", "eval.streamworld", "clip", "--out", str(folder)]
    command += ["--seed", str(seed), "--length-s", str(_LENGTH_S)]
    # Of a session of its own: a Ctrl-C ends it through us, and quietly.
    subprocess.run(command, check=True, start_new_session=True, stdout=subprocess.DEVNULL)


class _Watermark:
    """What has been received so far, and who waits for it."""

    def __init__(self) -> None:
        self._moved = asyncio.Condition()
        self._pts_s = -1.0

    async def move(self, pts_s: float) -> None:
        async with self._moved:
            self._pts_s = max(self._pts_s, pts_s)
            self._moved.notify_all()

    async def reach(self, pts_s: float) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._pts_s >= pts_s)


async def _run(
    folder: Path, questions: list[DemoQuestion], settings: Settings, speed: float, console: Console
) -> tuple[list[Outcome], dict[str, Any]]:
    console.print("starting two processes ...")
    async with (
        Supervisor(settings) as service,
        LookbackClient(service.ingest_address, service.qa_address) as client,
    ):
        started = time.perf_counter()
        await client.create_session(SESSION, settings=SessionSettings(sample_fps=1.0))
        console.print(f"pushing at {speed:g} times real time, and asking meanwhile ...")
        received = _Watermark()

        async def push() -> PushProgress:
            last: PushProgress | None = None
            async for event in client.push(
                SESSION, open_source(str(folder / "clip.mp4")), speed=speed
            ):
                if isinstance(event, PushProgress | PushFinished):
                    last = event if isinstance(event, PushProgress) else event.progress
                    if last.received_pts_s is not None:
                        await received.move(last.received_pts_s)
            assert last is not None
            await received.move(float("inf"))
            return last

        async def ask(question: DemoQuestion) -> Outcome:
            await received.reach(question.put_at_s)
            answer = await client.answer(SESSION, question.text, asked_at_s=question.asked_at_s)
            return Outcome(question=question, answer=answer)

        async with asyncio.TaskGroup() as group:
            pushing = group.create_task(push())
            asking = [group.create_task(ask(question)) for question in questions]
        session = await client.get_session(SESSION)
        stats = session.stats
        if stats is None:
            raise CommandError("STORE_DAMAGED", "what the demo stored cannot be read")
        figures = {
            "video_s": _LENGTH_S,
            "wall_s": round(time.perf_counter() - started, 1),
            "frames_received": pushing.result().received_frame_count,
            "units": stats.visible_unit_count,
            "tokens": stats.token_count,
            "disk_bytes": stats.disk_bytes,
            "peak_rss_bytes": {name: _peak_rss_bytes(service, name) for name in service.pids},
            "model": session.model,
        }
        return [task.result() for task in asking], figures


def _peak_rss_bytes(service: Supervisor, name: ProcessName) -> int:
    status = Path(f"/proc/{service.pids[name]}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": outcome.question.kind,
        "question": outcome.question.text,
        "put_at_s": outcome.question.put_at_s,
        "asked_at_s": outcome.question.asked_at_s,
        "answer": outcome.answer.text.strip(),
        "expected": outcome.question.expected,
        "right": outcome.right,
        "evidence": [
            {"start_s": each.start_s, "end_s": each.end_s, "score": each.score}
            for each in outcome.answer.evidence
        ],
        "ttft_s": outcome.answer.ttft_s,
    }


def _print(outcomes: list[Outcome], figures: dict[str, Any], console: Console) -> None:
    console.print(answers_table(outcomes))
    peaks = ", ".join(
        f"{name} {size / 2**20:.0f} MiB" for name, size in figures["peak_rss_bytes"].items()
    )
    console.print(
        f"{figures['frames_received']} frames received, {figures['units']} units and "
        f"{figures['tokens']} tokens kept, {figures['disk_bytes'] / 2**20:.1f} MiB on disk, "
        f"{figures['video_s']} s of video in {figures['wall_s']} s; peak memory: {peaks}; "
        f"model {figures['model']}"
    )


def answers_table(outcomes: list[Outcome]) -> Table:
    """Returns what was asked and answered, to be read at 80 columns."""
    title = "Asked while the video ran"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("asked at", no_wrap=True)
    table.add_column("question")
    table.add_column("answer")
    table.add_column("", no_wrap=True)
    for heading in ("shown at", "cited"):
        table.add_column(heading, no_wrap=True)
    table.add_column("TTFT", justify="right", no_wrap=True)
    for each in outcomes:
        question, answer = each.question, each.answer
        as_of = f"\nas of {_clock(question.asked_at_s)}"
        expected = f"\nexpected: {question.expected}"
        table.add_row(
            _clock(question.put_at_s) + (as_of if question.asked_at_s < question.put_at_s else ""),
            question.text,
            escape(answer.text.strip()) + ("" if each.right else expected),
            "[green]right[/]" if each.right else "[red]wrong[/]",
            "\n".join(_clock(start) for start, _ in question.evidence_s[:2]),
            "\n".join(
                f"{_clock(span.start_s)}-{_clock(span.end_s)}" for span in answer.evidence[:2]
            ),
            f"{1000 * answer.ttft_s:.0f} ms",
        )
    return table


def _clock(time_s: float) -> str:
    """A time without its tenths: frames of the demo are a second apart."""
    return format_time(time_s).removesuffix(".0")
