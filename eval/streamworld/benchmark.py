"""Runs a benchmark plan against the service: a stream is pushed once an arm, then asked about.

While one is asked about, the next is pushed: a service watches while it answers. Questions that are
to be alone wait until that is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress, TaskID

from eval.streamworld.clip_file import write_mp4
from eval.streamworld.curves import (
    EXAM_FPS,
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
from eval.streamworld.modes import Mode, options_for
from eval.streamworld.result_rows import answer_row, stream_row
from eval.streamworld.results_file import ResultsError, ResultsFile, Row
from eval.streamworld.seeds import generator
from eval.streamworld.service import Addresses
from svc.client import LookbackClient, LookbackError, PushReconnecting, SessionSettings
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
        run = _Run(client, plan, results, folder)
        await run.push(jobs[0])
        for job, following in itertools.zip_longest(jobs, jobs[1:]):
            progress.update(bar, description=f"{job.stream.name} {job.arm}")
            await run.ask(job, following)
            progress.advance(bar, job.stream.duration_s)
    return None


async def _encoding_of(client: LookbackClient, session_id: str) -> str:
    session = await client.create_session(session_id, exist_ok=True)
    await client.delete_session(session_id)
    return session.kv_encoding


@dataclass(frozen=True, slots=True)
class _Run:
    """Pushes and asks jobs of one service, one after another."""

    client: LookbackClient
    plan: BenchmarkPlan
    results: ResultsFile
    folder: Path

    async def push(self, job: _Job) -> None:
        """Pushes a stream afresh: one that was cut short is no use."""
        session_id, exam = self._session_id(job), self.plan.exam(job.stream)
        started_s = time.monotonic()
        with _unless("SESSION_NOT_FOUND"):
            await self.client.delete_session(session_id)
        settings = SessionSettings(sample_fps=float(exam.fps), reduction=job.arm.reduction)
        await self.client.create_session(session_id, settings=settings)
        path = self.folder / f"{session_id}.mp4"
        await asyncio.to_thread(write_mp4, exam.clip, path, fps=exam.fps)
        try:
            async for event in self.client.push(session_id, open_source(str(path))):
                if isinstance(event, PushReconnecting):
                    raise event.error
        finally:
            path.unlink()
        session = await self.client.get_session(session_id)
        row = stream_row(job.stream, job.arm, session, time.monotonic() - started_s)
        refuse_other(self.results, row)
        self.results.append(row)

    async def ask(self, job: _Job, following: _Job | None) -> None:
        """Asks about a stream that was pushed, while the one that follows is pushed."""
        together = [task for task in job.tasks if not task.asking.alone]
        room = asyncio.Semaphore(ASKED_TOGETHER)

        async def ask_in_room(task: Task) -> None:
            async with room:
                await self._ask(job, task)

        try:
            async with asyncio.TaskGroup() as group:
                if following is not None:
                    group.create_task(self.push(following))
                for task in together:
                    group.create_task(ask_in_room(task))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        for task in job.tasks:
            if task.asking.alone:
                await self._ask(job, task)
        await self.client.delete_session(self._session_id(job))

    async def _ask(self, job: _Job, task: Task) -> None:
        question, asking = task.question, task.asking
        rng = generator("evaluation", self.plan.seed, *task.stream.seed_words, task.number)
        answer = await self.client.answer(
            self._session_id(job),
            question.text,
            asked_at_s=question.asked_at_s,
            choices=question.options if asking.form == "choice" else (),
            retrieval=options_for(
                asking.mode,
                question,
                fps=EXAM_FPS,
                budget=asking.budget,
                window_units=WINDOW_UNITS,
                rng=rng,
            ),
            report_units_read=asking.mode is not Mode.ALL,
        )
        row = answer_row(task, answer)
        if answer.evidence_until_s > question.asked_at_s:
            raise AssertionError(f"an answer saw the future: {row}")
        self.results.append(row)

    def _session_id(self, job: _Job) -> str:
        arm = re.sub(r"[^a-z0-9]", "-", str(job.arm))
        return f"streamworld-{self.plan.digest}-{job.stream.name}-{arm}"


@contextlib.contextmanager
def _unless(reason: str) -> Iterator[None]:
    try:
        yield
    except LookbackError as error:
        if error.reason != reason:
            raise


def refuse_other(results: ResultsFile, row: Row) -> None:
    """Refuses to add to rows of another model, or of a preset that meant another strength.

    Raises:
        ResultsError: the file's rows are such.
    """
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
