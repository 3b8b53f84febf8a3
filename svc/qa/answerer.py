"""One question from snapshot to answer: waits for its time, reads, and starts over if it must."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TypeVar

from kvstore.errors import SessionNotFoundError
from kvstore.guarded import GuardedReader
from kvstore.readpool import Reading, ReadPool
from kvstore.readtrace import ReadTrace
from kvstore.session import SessionRecord
from kvstore.snapshot import Snapshot
from retrieval.index import KeyIndexReader
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.model import LoadedModel
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.serving import model_identity, shape_of
from svc.engine.store_memory import StoreMemory
from svc.qa.as_of import Wait, cut_history, cut_snapshot
from svc.qa.convert import Answered, Question
from svc.qa.deadline import Deadline
from svc.qa.disk_threads import DiskThreads
from svc.qa.errors import SNAPSHOT_LOST_ERRORS
from svc.qa.evidence import coarsened_spans, evidence_spans, lost_spans
from svc.qa.following import Follower
from svc.qa.runner import Event, Job, Runner
from svc.qa.sessions import Lease, OpenSession, SessionCache
from svc.rpc.errors import Reason, RequestError

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.03
_RETRY_PAUSE_S = 0.1

T = TypeVar("T")


class Answerer:
    """Answers questions with one model and one store. Used on the event loop."""

    def __init__(
        self,
        *,
        model: LoadedModel,
        sessions: SessionCache,
        runner: Runner,
        threads: DiskThreads,
        pool: ReadPool | None = None,
        follower: Follower | None = None,
        trace: ReadTrace | None = None,
    ) -> None:
        """The runner's thread must be running for answers to come; it reads with the pool.

        `follower` hears of what is made durable elsewhere, in sessions that were asked about, and
        `trace` what questions read.
        """
        self._follower = follower
        self._model = model
        self._identity = model_identity(model)
        self._sessions = sessions
        self._runner = runner
        self._pool = pool
        self._trace = trace
        self._threads = threads

    async def answer(
        self, question: Question, *, arrived_s: float, deadline_s: float
    ) -> AsyncGenerator[str | Answered, None]:
        """Yields the text as it comes, then the whole answer.

        When the ingest process came back from a crash meanwhile and the snapshot is gone, the
        question starts over once on a new one, unless some text was given out already.

        Args:
            question: what is asked.
            arrived_s: when, by time.perf_counter.
            deadline_s: when to give up, by time.perf_counter.

        Raises:
            RequestError: a refusal.
            Exception: of kvstore, retrieval or the engine; see `svc.qa.errors.translate`.
        """
        deadline = Deadline(deadline_s)
        started_over = False
        while True:
            given_out = False
            lease = await deadline.keep(self._lease(question.session_id))
            try:
                events = self._answer_once(lease, question, deadline, arrived_s=arrived_s)
                async with aclosing(events):
                    async for event in events:
                        given_out = True
                        yield event
                return
            except (*SNAPSHOT_LOST_ERRORS, SessionNotFoundError) as error:
                # also a session made anew under its name while its old reader was open
                self._sessions.discard(lease.session)
                if given_out or started_over:
                    raise
                started_over = True
                logger.info(
                    "question starts over on a new snapshot",
                    extra={"session": question.session_id, "cause": str(error)},
                )
            finally:
                lease.release()
            await deadline.keep(asyncio.sleep(_RETRY_PAUSE_S))

    async def _lease(self, session_id: str) -> Lease:
        """Returns the session; a question that is given up meanwhile leaves no lease behind."""
        return await self._threads.run(
            session_id,
            partial(self._sessions.lease, session_id),
            when_given_up=lambda leasing: leasing.add_done_callback(_release_unwanted),
        )

    async def _in_thread(self, session: OpenSession, work: Callable[[], T]) -> T:
        """Returns what a thread does with a leased session, which stays open until it is done.

        Whoever waits for it may be gone by then: a thread that waits for a disk cannot be stopped.
        """

        def keep_open(working: asyncio.Future[T]) -> None:
            held = self._sessions.lease_again(session)  # the question's own lease goes now

            def done(working: asyncio.Future[T]) -> None:
                held.release()
                if not working.cancelled():
                    working.exception()  # looked at here: nobody else does any more

            working.add_done_callback(done)

        return await self._threads.run(session.session_id, work, when_given_up=keep_open)

    async def _answer_once(
        self, lease: Lease, question: Question, deadline: Deadline, *, arrived_s: float
    ) -> AsyncGenerator[str | Answered, None]:
        session = lease.session
        if self._follower is not None:
            self._follower.follow(session)
        record, snapshot, index = await self._look(session, question, deadline)
        reading = Reading(deadline_s=deadline.at_s)
        trace = self._trace.question(question.session_id) if self._trace else None
        reader = GuardedReader(session.reader, self._pool, reading, trace)
        memory = StoreMemory(
            self._model,
            reader,
            index,
            snapshot,
            self._model.adapter.shaped(shape_of(record.identity)),
        )
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        held = self._sessions.lease_again(session)

        def let_go() -> None:
            reader.end()
            held.release()

        job = Job(
            session_id=question.session_id,
            request=_as_of(question, record, snapshot),
            memory=memory,
            deliver=deliver,
            let_go=let_go,
        )
        try:
            self._runner.submit(job)
        except BaseException:
            held.release()
            raise
        try:
            while True:
                event = await deadline.keep(events.get())
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, AnswerResult):
                    # Evidence is the more work the older the stream is: not on the event loop.
                    yield await asyncio.to_thread(
                        self._answered, event, job, snapshot, record, question, arrived_s
                    )
                    return
                yield event
        finally:
            self._runner.cancel(job)
            reading.give_up()

    async def _look(
        self, session: OpenSession, question: Question, deadline: Deadline
    ) -> tuple[SessionRecord, Snapshot, KeyIndexReader]:
        """Returns the session's record and what the question may see, when all of it is there."""
        while True:
            look = await deadline.keep(self._in_thread(session, session.look))
            self._check_identity(look.record)
            seen = cut_snapshot(
                look.snapshot,
                look.watermarks,
                asked_at_s=question.asked_at_s,
                cut=question.cut,
                finished=look.record.state == "finished",
            )
            if not isinstance(seen, Wait):
                index_of = partial(session.index_of, seen)
                index = await deadline.keep(self._in_thread(session, index_of))
                if index is not None:
                    return look.record, seen, index
            await deadline.keep(asyncio.sleep(_LOOK_AGAIN_S))

    def _check_identity(self, record: SessionRecord) -> None:
        """Refuses a session whose keys and values were made by another model."""
        for field, serving in self._identity.items():
            stored = record.identity.get(field)
            if stored != serving:
                raise RequestError(
                    Reason.IDENTITY_MISMATCH,
                    f"session {record.session_id!r} was encoded with {field} {stored}, "
                    f"this server answers with {serving}",
                    session_id=record.session_id,
                    field=field,
                    stored=stored,
                    serving=serving,
                )

    def _answered(
        self,
        result: AnswerResult,
        job: Job,
        snapshot: Snapshot,
        record: SessionRecord,
        question: Question,
        arrived_s: float,
    ) -> Answered:
        until_s = float(snapshot.last_pts_s[-1])
        asked_at_s = until_s if question.asked_at_s is None else question.asked_at_s
        started_s, ttft_s = job.started_at_s, result.timings.ttft_s
        if started_s is None or ttft_s is None:
            raise RuntimeError("an answer that was not cancelled has a first token")
        period_s = record.unit_period_s / self._model.adapter.frames_per_unit
        return Answered(
            result=result,
            evidence=evidence_spans(result, snapshot, frame_period_s=period_s),
            coarsened=coarsened_spans(
                result,
                snapshot,
                token_counts=job.memory.token_counts,
                frame_period_s=period_s,
                tokens_per_unit=self._model.adapter.tokens_per_unit,
            ),
            lost=lost_spans(result.lost, snapshot, frame_period_s=period_s),
            evidence_until_s=until_s,
            remembers_from_s=(
                float(snapshot.first_pts_s[snapshot.first_unit]) if snapshot.first_unit else None
            ),
            held_unit_count=snapshot.unit_count - snapshot.first_unit,
            units_read=result.layer_units if question.report_units_read else (),
            asked_at_s=asked_at_s,
            ttft_s=started_s - arrived_s + ttft_s,
            total_s=time.perf_counter() - arrived_s,
            model=self._model.name,
        )


def _as_of(question: Question, record: SessionRecord, snapshot: Snapshot) -> AnswerRequest:
    """Returns the request as the snapshot lets it be put.

    Turns that tell of later video are left out. Where what units lack was no repetition, the newest
    is as it is stored, and all are searched.
    """
    request = question.request
    reduction = ReductionSpec.parse(str(record.identity.get("reduction", "none")))
    return replace(
        request,
        history=cut_history(request.history, question.history_until_s, snapshot),
        newest_whole=request.newest_whole and reduction.drops_repeats,
        repeats_searched=request.repeats_searched or not reduction.drops_repeats,
    )


def _release_unwanted(leasing: asyncio.Future[Lease]) -> None:
    if not leasing.cancelled() and leasing.exception() is None:
        leasing.result().release()
