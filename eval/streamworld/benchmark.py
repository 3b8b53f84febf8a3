"""Runs a benchmark plan against the service: a stream is pushed once an arm, then asked about."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress, TaskID

from eval.streamworld.clip_file import write_mp4
from eval.streamworld.curves import (
    WINDOW_UNITS,
    Arm,
    BenchmarkPlan,
    CurveName,
    Encoding,
    Stream,
    Task,
    arms,
    tasks,
)
from eval.streamworld.exam import Exam
from eval.streamworld.modes import options_for
from eval.streamworld.results_file import ResultsError, ResultsFile, Row
from eval.streamworld.seeds import generator
from eval.streamworld.service import Addresses
from svc.client import (
    Answer,
    Evidence,
    LookbackClient,
    LookbackError,
    PushReconnecting,
    Session,
    SessionSettings,
)
from svc.video.sources import open_source

ASKED_TOGETHER = 4
ServiceOf = Callable[[Encoding], contextlib.AbstractContextManager[Addresses]]
"""Gives a service for a block, which should store keys and values as an element type."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One stream in one arm, and what has not been asked of it yet."""

    stream: Stream
    arm: Arm
    tasks: tuple[Task, ...]


def open_jobs(
    plan: BenchmarkPlan,
    curves: Sequence[CurveName],
    streams: Sequence[Stream],
    results: ResultsFile,
) -> list[_Job]:
    """What is left to do, element type by element type and stream by stream."""
    jobs = []
    for stream in streams:
        for arm in arms(curves, stream):
            left = [t for t in tasks(plan, curves, stream, arm) if not results.has("answer", t.key)]
            if left:
                jobs.append(_Job(stream, arm, tuple(left)))
    order: dict[Encoding, int] = {"model": 0, "int8": 1, "int4": 2}
    return sorted(jobs, key=lambda job: order[job.arm.encoding])


def run_benchmark(
    plan: BenchmarkPlan,
    curves: Sequence[CurveName],
    streams: Sequence[Stream],
    results: ResultsFile,
    folder: Path,
    service_of: ServiceOf,
    progress: Progress,
) -> list[str]:
    """Asks what is not in the results yet.

    Args:
        plan: What the streams and questions are.
        curves: Which curves to measure.
        streams: On which streams.
        results: Appended to as answers come.
        folder: Where clips are written for the time of their push.
        service_of: Gives a service per element type.
        progress: Shows how far it is, in seconds of stream.

    Returns:
        What was left out, in words.

    Raises:
        LookbackError: The service failed; what is in the file stays.
        ResultsError: The file's rows are of another model or of presets that meant otherwise.
    """
    left_out = []
    jobs = open_jobs(plan, curves, streams, results)
    bar = progress.add_task("", total=sum(job.stream.duration_s for job in jobs))
    for encoding in dict.fromkeys(job.arm.encoding for job in jobs):
        own = [job for job in jobs if job.arm.encoding == encoding]
        with service_of(encoding) as addresses:
            other = asyncio.run(_run_jobs(plan, own, results, folder, addresses, progress, bar))
        if other is not None:
            left_out.append(f"arms in {encoding}: the service stores keys and values as {other}")
            progress.advance(bar, sum(job.stream.duration_s for job in own))
    return left_out


async def _run_jobs(
    plan: BenchmarkPlan,
    jobs: Sequence[_Job],
    results: ResultsFile,
    folder: Path,
    addresses: Addresses,
    progress: Progress,
    bar: TaskID,
) -> str | None:
    """Runs jobs of one element type; where the service has another, returns that one instead."""
    async with LookbackClient(addresses.ingest, addresses.qa) as client:
        stored_as = await _encoding_of(client, f"streamworld-{plan.digest}-probe")
        if stored_as != jobs[0].arm.encoding:
            return stored_as
        for job in jobs:
            progress.update(bar, description=f"{job.stream.name} {job.arm}")
            await _run_job(client, plan, job, results, folder)
            progress.advance(bar, job.stream.duration_s)
    return None


async def _encoding_of(client: LookbackClient, session_id: str) -> str:
    session = await client.create_session(session_id, exist_ok=True)
    await client.delete_session(session_id)
    return session.kv_encoding


async def _run_job(
    client: LookbackClient, plan: BenchmarkPlan, job: _Job, results: ResultsFile, folder: Path
) -> None:
    arm = re.sub(r"[^a-z0-9]", "-", str(job.arm))
    session_id = f"streamworld-{plan.digest}-{job.stream.name}-{arm}"
    exam = plan.exam(job.stream)
    started_s = time.monotonic()
    session = await _push(client, session_id, job, exam, folder)
    row = _stream_row(job, session, time.monotonic() - started_s)
    _refuse_other(results, row)
    results.append(row)
    room = asyncio.Semaphore(ASKED_TOGETHER)

    async def ask(task: Task) -> None:
        async with room:
            results.append(await _ask(client, session_id, plan, task))

    try:
        async with asyncio.TaskGroup() as group:
            for task in job.tasks:
                group.create_task(ask(task))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    await client.delete_session(session_id)


async def _push(
    client: LookbackClient, session_id: str, job: _Job, exam: Exam, folder: Path
) -> Session:
    """Pushes a stream afresh: one that was cut short is no use."""
    with _unless("SESSION_NOT_FOUND"):
        await client.delete_session(session_id)
    settings = SessionSettings(sample_fps=float(exam.fps), reduction=job.arm.reduction)
    await client.create_session(session_id, settings=settings)
    path = folder / f"{session_id}.mp4"
    await asyncio.to_thread(write_mp4, exam.clip, path, fps=exam.fps)
    try:
        async for event in client.push(session_id, open_source(str(path))):
            if isinstance(event, PushReconnecting):
                raise event.error
    finally:
        path.unlink()
    return await client.get_session(session_id)


@contextlib.contextmanager
def _unless(reason: str) -> Iterator[None]:
    try:
        yield
    except LookbackError as error:
        if error.reason != reason:
            raise


def _stream_row(job: _Job, session: Session, push_s: float) -> Row:
    stats = session.stats
    if stats is None:
        raise ResultsError(f"the service does not know what it stored of {session.session_id}")
    return {
        "row": "stream",
        "key": (job.stream.name, str(job.arm)),
        "stream": job.stream.name,
        "arm": str(job.arm),
        "scenario": job.stream.scenario,
        "duration_s": job.stream.duration_s,
        "reduction_in_force": session.settings.reduction,
        "encoding_in_force": session.kv_encoding,
        "units": stats.visible_unit_count,
        "tokens": stats.token_count,
        "disk_bytes": stats.disk_bytes,
        "push_s": push_s,
        "model": session.model,
    }


def _refuse_other(results: ResultsFile, row: Row) -> None:
    """A preset may have come to mean something else since the file's rows were written."""
    for other in results.rows:
        if other["row"] != "stream":
            continue
        if other["model"] != row["model"]:
            raise ResultsError(
                f"the results are of {other['model']}, the service runs {row['model']}"
            )
        same_arm = other["arm"] == row["arm"]
        if same_arm and other["reduction_in_force"] != row["reduction_in_force"]:
            raise ResultsError(
                f"{row['arm']} was {other['reduction_in_force']} in the results, and is "
                f"{row['reduction_in_force']} now: begin new ones with --out"
            )


async def _ask(client: LookbackClient, session_id: str, plan: BenchmarkPlan, task: Task) -> Row:
    question, asking = task.question, task.asking
    fps = plan.exam(task.stream).fps
    kinds = ("mixed", "long")
    rng = generator(
        "evaluation", plan.seed, kinds.index(task.stream.kind), task.stream.number, task.number
    )
    answer = await client.answer(
        session_id,
        question.text,
        asked_at_s=question.asked_at_s,
        choices=question.options if asking.form == "choice" else (),
        retrieval=options_for(
            asking.mode,
            question,
            fps=fps,
            budget=asking.budget,
            window_units=WINDOW_UNITS,
            rng=rng,
        ),
    )
    row = _answer_row(task, answer)
    if answer.evidence_until_s > question.asked_at_s:
        raise AssertionError(f"an answer saw the future: {row}")
    return row


def _answer_row(task: Task, answer: Answer) -> Row:
    question, said = task.question, answer.text.strip()
    spans = question.evidence_s
    return {
        "row": "answer",
        "key": task.key,
        "stream": task.stream.name,
        "scenario": task.stream.scenario,
        "arm": str(task.arm),
        "number": task.number,
        "mode": task.asking.mode.value,
        "budget": task.asking.budget,
        "form": task.asking.form,
        "kind": question.kind,
        "drift": question.drift,
        "question": question.text,
        "expected": question.answer,
        "answer": said,
        "right": said == question.answer,
        "asked_at_s": question.asked_at_s,
        "age_s": question.asked_at_s - spans[-1][1] if spans else None,
        "evidence_s": spans,
        "recall": _recall(spans, answer.evidence),
        "seen_until_s": answer.evidence_until_s,
        "units": answer.retrieved_unit_count,
        "tokens": answer.retrieved_token_count,
        "snapshot_units": answer.snapshot_unit_count,
        "ttft_s": answer.ttft_s,
    }


def _recall(spans: Sequence[tuple[float, float]], cited: Sequence[Evidence]) -> float | None:
    """Share of the spans that hold the answer of which something is cited."""
    if not spans:
        return None
    found = [any(a < e.end_s and e.start_s < b for e in cited) for a, b in spans]
    return sum(found) / len(found)
