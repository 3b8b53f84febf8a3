"""The built-in model through the running service, on held-out streams.

Every stream is pushed once, as H.264 packets; then every question is asked as of its own time, in
every mode. Results are appended to a file as they come, and a run goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.streamworld.clip_file import write_mp4
from eval.streamworld.exam import Exam, Question, make_exam
from eval.streamworld.modes import Mode, options_for
from eval.streamworld.seeds import generator
from eval.streamworld.summary import Record
from svc.client import Answer, LookbackClient, LookbackError, PushReconnecting, SessionSettings
from svc.video.sources import open_source

_FPS = Fraction(1)
_ASKED_TOGETHER = 4
_FULL_ATTENTION_EVERY = 4  # it takes a hundred times as long: a sample of the questions is enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked; two runs with equal plans ask the same."""

    seed: int
    stream_count: int
    durations_s: tuple[int, ...]
    """Lengths of the streams, taken in turn."""
    questions_per_kind: int
    budget: int
    window_units: int
    grid_px: int
    crf: int = 23

    @property
    def digest(self) -> str:
        """Names the plan in every record."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def exam(self, stream: int) -> Exam:
        """The clip and the questions of one stream."""
        return make_exam(
            seed=self.seed * 100_000 + stream,
            duration_s=self.durations_s[stream % len(self.durations_s)],
            fps=_FPS,
            questions_per_kind=self.questions_per_kind,
            grid_px=self.grid_px,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question in one mode and form."""

    stream: int
    number: int
    """Index of the question in its exam."""
    question: Question
    mode: Mode
    form: str
    """"free", or "choice": picked among the question's options by likelihood."""

    @property
    def key(self) -> tuple[int, int, str, str]:
        """Names the task within a plan."""
        return (self.stream, self.number, self.mode.value, self.form)


def tasks_of(plan: Plan, stream: int, exam: Exam) -> Iterator[Task]:
    """Everything that is asked about one stream."""
    for number, question in enumerate(exam.questions):
        for mode in Mode:
            if mode is Mode.ALL and number % _FULL_ATTENTION_EVERY:
                continue
            yield Task(stream=stream, number=number, question=question, mode=mode, form="free")
        yield Task(
            stream=stream, number=number, question=question, mode=Mode.RETRIEVAL, form="choice"
        )


def read_records(path: Path, plan: Plan) -> list[Record]:
    """The records of this plan that a file already holds; a half-written last line is dropped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            record = json.loads(line)
            if record["plan"] == plan.digest:
                records.append(record)
    return records


async def evaluate(
    client: LookbackClient, plan: Plan, results: Path, folder: Path, progress: Progress
) -> list[Record]:
    """Asks what is not in `results` yet, and returns all records of the plan.

    Args:
        client: The service, with the built-in model.
        plan: What to ask.
        results: JSONL file; appended to.
        folder: Where clips are written for the time of their push.
        progress: Shows how far it is.

    Raises:
        LookbackError: The service failed; what is in the file stays.
    """
    records = read_records(results, plan)
    done = {tuple(record["key"]) for record in records}
    results.parent.mkdir(parents=True, exist_ok=True)
    bar = progress.add_task("streams", total=plan.stream_count)
    with results.open("a") as file:
        for stream in range(plan.stream_count):
            exam = plan.exam(stream)
            open_tasks = [t for t in tasks_of(plan, stream, exam) if (*t.key,) not in done]
            if open_tasks:
                session = f"streamworld-{plan.digest}-{stream:04d}"
                await _push(client, session, exam, plan, folder)
                for record in await _ask_all(client, session, plan, open_tasks):
                    file.write(json.dumps(record) + "\n")
                    records.append(record)
                file.flush()
                await client.delete_session(session)
            progress.advance(bar)
    return records


async def _push(client: LookbackClient, session: str, exam: Exam, plan: Plan, folder: Path) -> None:
    """Pushes a stream afresh: one that was cut short is no use."""
    try:
        await client.delete_session(session)
    except LookbackError as error:
        if error.reason != "SESSION_NOT_FOUND":
            raise
    await client.create_session(session, settings=SessionSettings(sample_fps=float(_FPS)))
    path = folder / f"{session}.mp4"
    await asyncio.to_thread(write_mp4, exam.clip, path, fps=exam.fps, crf=plan.crf)
    try:
        async for event in client.push(session, open_source(str(path))):
            if isinstance(event, PushReconnecting):
                raise event.error
    finally:
        path.unlink()


async def _ask_all(
    client: LookbackClient, session: str, plan: Plan, tasks: list[Task]
) -> list[Record]:
    room = asyncio.Semaphore(_ASKED_TOGETHER)

    async def ask(task: Task) -> Record:
        async with room:
            return await _ask(client, session, plan, task)

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(task)) for task in tasks]
    return [one.result() for one in asked]


async def _ask(client: LookbackClient, session: str, plan: Plan, task: Task) -> Record:
    question = task.question
    rng = generator("evaluation", plan.seed, task.stream, task.number)
    answer = await client.answer(
        session,
        question.text,
        asked_at_s=question.asked_at_s,
        choices=question.options if task.form == "choice" else (),
        retrieval=options_for(
            task.mode,
            question,
            fps=_FPS,
            budget=plan.budget,
            window_units=plan.window_units,
            rng=rng,
        ),
    )
    return _record(plan, task, answer)


def _record(plan: Plan, task: Task, answer: Answer) -> Record:
    question = task.question
    said = answer.text.strip()
    cited = [
        any(a < e.end_s and e.start_s < b for a, b in question.evidence_s) for e in answer.evidence
    ]
    record: dict[str, Any] = {
        "plan": plan.digest,
        "key": task.key,
        "kind": question.kind,
        "asked_as": question.asked_as,
        "mode": task.mode.value,
        "form": task.form,
        "question": question.text,
        "expected": question.answer,
        "answer": said,
        "right": said == question.answer,
        "asked_at_s": question.asked_at_s,
        "age_s": question.asked_at_s - question.evidence_s[-1][1] if question.evidence_s else None,
        "evidence_s": question.evidence_s,
        "cited": any(cited),
        "cited_first": bool(cited) and cited[0],
        "seen_until_s": answer.evidence_until_s,
        "units": answer.retrieved_unit_count,
        "ttft_s": answer.ttft_s,
        "model": answer.model,
    }
    if answer.evidence_until_s > question.asked_at_s:
        raise AssertionError(f"an answer saw the future: {record}")
    return record


def progress_bar() -> Progress:
    """The bar that `evaluate` moves."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )
