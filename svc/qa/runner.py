"""The one thread that touches the model: questions of all sessions decode together on it.

Between two decode steps, questions join and leave: finished and given-up ones go, waiting ones
take their places, sessions in turn. Everything the engine does, reading memory included, happens
on this thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.answer_result import AnswerResult
from svc.engine.answering import Answering
from svc.engine.memory import Memory
from svc.qa.fair_queue import FairQueue

logger = logging.getLogger(__name__)

Event = str | AnswerResult | Exception
"""More text; or the last event: the result, or what went wrong."""


class Job:
    """One question in the runner's hands."""

    def __init__(
        self,
        *,
        session_id: str,
        request: AnswerRequest,
        memory: Memory,
        deliver: Callable[[Event], None],
        let_go: Callable[[], None],
    ) -> None:
        """Makes the job; `Runner.submit` takes it.

        Args:
            session_id: whose turn it uses.
            request: what is asked.
            memory: what may be seen; used on the model thread only.
            deliver: takes the events in order, on the model thread; none after the job is
                cancelled or after the last event.
            let_go: called once, when the runner will touch `memory` no more.
        """
        self.session_id = session_id
        self.request = request
        self.memory = memory
        self.deliver = deliver
        self.let_go = let_go
        self.cancelled = False
        self.started_at_s: float | None = None
        """When the engine took it, by time.perf_counter: its timings count from here."""
        self.answering: Answering | None = None


class Runner:
    """Owns the model thread. `submit`, `cancel` and `stop` may be called from any thread."""

    def __init__(self, *, packed_count: int) -> None:
        """`packed_count` questions at most decode together; more wait their turn."""
        self._packed_count = packed_count
        self._waiting: FairQueue[Job] = FairQueue()
        self._changed = threading.Condition()
        self._stopping = False
        self._active: list[Job] = []

    def run(self, engine: AnswerEngine) -> None:
        """Answers until `stop`; the calling thread becomes the model thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._active or len(self._waiting))
                if self._stopping:
                    break
            self._turn(engine)
        self._drop_all()

    def submit(self, job: Job) -> None:
        """Puts a question into its session's line."""
        with self._changed:
            if self._stopping:
                raise RuntimeError("the runner has stopped")
            self._waiting.push(job.session_id, job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Gives a question up: it leaves before the next step, or never starts."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def stop(self) -> None:
        """Ends `run` after the step that runs now; what is left is dropped without an event."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _turn(self, engine: AnswerEngine) -> None:
        """Lets questions leave and join, then takes one step."""
        for job in [job for job in self._active if job.cancelled]:
            if job.answering is not None:
                job.answering.cancel()
            self._drop(job)
        self._join(engine)
        answerings = [job.answering for job in self._active if job.answering is not None]
        if not answerings:
            return
        try:
            engine.step(answerings)
        except Exception as error:
            logger.error("a decode step failed; its questions fail", exc_info=error)
            for job in list(self._active):
                self._end(job, error)
            return
        for job in list(self._active):
            self._deliver_step(job)

    def _join(self, engine: AnswerEngine) -> None:
        while len(self._active) < self._packed_count:
            with self._changed:
                job = self._waiting.pop()
            if job is None:
                return
            self._active.append(job)
            if job.cancelled:
                self._drop(job)
                continue
            job.started_at_s = time.perf_counter()
            try:
                job.answering = engine.start(job.request, job.memory)
            except Exception as error:  # noqa: BLE001 - judged where the call is answered
                self._end(job, error)

    def _deliver_step(self, job: Job) -> None:
        answering = job.answering
        if answering is None or job.cancelled:
            return
        if answering.error is not None:
            self._end(job, answering.error)
            return
        if answering.text_delta:
            job.deliver(answering.text_delta)
        if answering.result is not None:
            self._end(job, answering.result)

    def _end(self, job: Job, last: AnswerResult | Exception) -> None:
        if not job.cancelled:
            job.deliver(last)
        self._drop(job)

    def _drop(self, job: Job) -> None:
        self._active.remove(job)
        job.answering = None
        job.let_go()

    def _drop_all(self) -> None:
        with self._changed:
            while (job := self._waiting.pop()) is not None:
                self._active.append(job)
        for job in list(self._active):
            self._drop(job)
