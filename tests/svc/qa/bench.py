"""An answerer in the test's own process, and ways to hold the threads that work for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerRequest
from svc.engine.model import LoadedModel
from svc.qa.answerer import Answerer
from svc.qa.convert import Answered, Question
from svc.qa.disk_threads import DiskThreads
from svc.qa.following import Follower
from svc.qa.runner import Job, Runner
from svc.qa.sessions import SessionCache
from svc.qa.warm_up import RandomMemory
from svc.registry.announcements import Announcements

JOIN_S = 20.0
"""How long a test that failed waits for the model thread, which it may have left held."""


class StepwiseMemory(RandomMemory):
    """Lets the model thread read only when the test says so."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model, 3)
        self.reading = threading.Event()
        self.may_read = threading.Event()

    def load(self, layer: int, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        self.reading.set()
        self.may_read.wait()
        return super().load(layer, units)


class Bench:
    """An answerer whose model thread answers one question at a time, and can be held."""

    def __init__(
        self, store: Path, model: LoadedModel, announcements: Announcements | None = None
    ) -> None:
        self.model = model
        self.runner = Runner(packed_count=1)
        self.sessions = SessionCache(store, capacity=2)
        self.threads = DiskThreads(max_count=8, max_count_per_session=2)
        self.follower = None if announcements is None else Follower(announcements, self.sessions)
        self.answerer = Answerer(
            model=model,
            sessions=self.sessions,
            runner=self.runner,
            threads=self.threads,
            follower=self.follower,
        )
        self.thread = threading.Thread(
            target=self.runner.run, args=[AnswerEngine(model)], daemon=True
        )
        self.thread.start()

    def hold(self) -> Callable[[], None]:
        """Keeps the model thread busy until the function returned is called."""
        gate = StepwiseMemory(self.model)
        request = AnswerRequest(question="What?", max_new_tokens=1)
        self.runner.submit(
            Job(
                session_id="gate",
                request=request,
                memory=gate,
                deliver=lambda event: None,
                let_go=lambda: None,
            )
        )
        gate.reading.wait()
        return gate.may_read.set

    async def answer(
        self, session_id: str, *, timeout_s: float = 60.0, asked_at_s: float | None = None
    ) -> Answered:
        request = AnswerRequest(
            question="What?", max_new_tokens=4, temperature=0.0, ignore_eos=True, unit_count=4
        )
        question = Question(
            session_id=session_id, asked_at_s=asked_at_s, cut="at_or_before", request=request
        )
        now_s = time.perf_counter()
        async for event in self.answerer.answer(
            question, arrived_s=now_s, deadline_s=now_s + timeout_s
        ):
            last = event
        assert isinstance(last, Answered)
        return last

    async def asked(self, session_id: str, **settings: float) -> asyncio.Task[Answered]:
        """Begins a question, and returns when it waits for the model thread."""
        task = asyncio.create_task(self.answer(session_id, **settings))
        await until(lambda: len(self.runner._waiting) > 0 or task.done())
        return task


async def until(claim: Callable[[], bool]) -> None:
    """Waits for what the model thread does; the suite's timeout is the limit."""
    while not claim():  # noqa: ASYNC110 - nothing here could set an event
        await asyncio.sleep(0.001)


class Held:
    """Calls of one method that do not go on before they may."""

    def __init__(self) -> None:
        self.entered, self.may_go_on = threading.Event(), threading.Event()
        self.ended = threading.Event()


@contextmanager
def holding(owner: type, name: str) -> Iterator[Held]:
    """Holds the calls that begin within the block; at its end they may go on at the latest."""
    held = Held()
    method: Callable[..., Any] = getattr(owner, name)

    def hold(*arguments: Any) -> Any:
        held.entered.set()
        held.may_go_on.wait()
        try:
            return method(*arguments)
        finally:
            held.ended.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, hold)
        try:
            yield held
        finally:
            held.may_go_on.set()
