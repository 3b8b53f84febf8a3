"""QuestionService: one call from the wire to the answerer and back."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from kvstore.errors import SessionNotFoundError
from lookback.v1 import question_pb2 as pb
from lookback.v1 import question_pb2_grpc
from svc.engine.answer_request import AnswerLimits
from svc.qa.answerer import Answerer
from svc.qa.convert import Answered, answer_message, delta_message, parse_question
from svc.qa.directory import Directory, NoDirectory
from svc.rpc.errors import Reason, RequestError

logger = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["QuestionService"].full_name


class QuestionService(question_pb2_grpc.QuestionServiceServicer):
    """Admits questions, a bounded number at a time, and answers them while the process serves."""

    def __init__(
        self,
        *,
        max_open_questions: int,
        default_timeout_s: float,
        directory: Directory | None = None,
    ) -> None:
        """Refuses every call until `begin`; `directory` knows the sessions of other stores."""
        self._directory = directory or NoDirectory()
        self._max_open = max_open_questions
        self._default_timeout_s = default_timeout_s
        self._answerer: Answerer | None = None
        self._limits = AnswerLimits()
        self._default_unit_count = 0
        self._draining = False
        self._open_count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self, answerer: Answerer, *, limits: AnswerLimits, default_unit_count: int) -> None:
        """Takes calls from now on; `default_unit_count` is what the model recommends."""
        self._answerer = answerer
        self._limits = limits
        self._default_unit_count = default_unit_count

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls, and returns when the open ones have ended, or after `grace_s`."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), grace_s)
        except TimeoutError:
            logger.warning("questions cut off by the stop", extra={"count": self._open_count})

    async def Ask(  # noqa: N802 - named by the protocol
        self,
        request: pb.AskRequest,
        context: grpc.aio.ServicerContext[pb.AskRequest, pb.AskResponse],
    ) -> AsyncIterator[pb.AskResponse]:
        """Answers one question."""
        arrived_s = time.perf_counter()
        answerer = self._admit()
        request_id = uuid.uuid4().hex[:12]
        self._open_count += 1
        self._idle.clear()
        try:
            question = parse_question(
                request, default_unit_count=self._default_unit_count, limits=self._limits
            )
            remaining_s = context.time_remaining()
            timeout_s = self._default_timeout_s if remaining_s is None else remaining_s
            events = answerer.answer(
                question, arrived_s=arrived_s, deadline_s=arrived_s + timeout_s
            )
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Answered):
                        _log(request_id, question.session_id, event)
                        yield answer_message(event)
                    else:
                        yield delta_message(event)
        except SessionNotFoundError:
            elsewhere = await self._directory.elsewhere(request.session_id)
            if elsewhere is None:
                raise
            raise elsewhere from None
        finally:
            self._open_count -= 1
            if not self._open_count:
                self._idle.set()

    def _admit(self) -> Answerer:
        if self._draining:
            raise RequestError(Reason.DRAINING, "the server is about to stop; ask again soon")
        if self._answerer is None:
            raise RequestError(Reason.NOT_READY, "the server is still loading its model")
        if self._open_count >= self._max_open:
            raise RequestError(
                Reason.TOO_MANY_CALLS,
                f"{self._open_count} questions are open, {self._max_open} are allowed",
                open=self._open_count,
                allowed=self._max_open,
            )
        return self._answerer


def _log(request_id: str, session_id: str, answered: Answered) -> None:
    logger.info(
        "question answered",
        extra={
            "request": request_id,
            "session": session_id,
            "tokens": len(answered.result.token_ids),
            "units": answered.result.context_unit_count,
            "ttft_s": round(answered.ttft_s, 4),
            "total_s": round(answered.total_s, 4),
        },
    )
