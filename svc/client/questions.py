"""Calls of QuestionService."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TypedDict, Unpack

import grpc

from lookback.v1 import question_pb2, question_pb2_grpc
from svc.client.convert import answer_from, decoding_to, retrieval_to, turn_to
from svc.client.errors import CONNECTION_LOST, LookbackError, error_from_call
from svc.client.places import MAX_HOPS, Places, named_address
from svc.client.readiness import Readiness
from svc.client.types import Answer, DecodingOptions, RetrievalOptions, TextDelta, Turn

_TIMEOUT_S = 120.0
_DEFAULT_RETRIEVAL = RetrievalOptions()
_DEFAULT_DECODING = DecodingOptions()


class QuestionOptions(TypedDict, total=False):
    """What any question may carry beside its text. Everything has a default."""

    asked_at_s: float | None
    """Time in the stream at which it is asked; None: now."""
    before: bool
    """See what is before `asked_at_s` only, not what is at it."""
    choices: Sequence[str]
    """Up to 26 options, of which the most likely is picked."""
    retrieval: RetrievalOptions
    """What may be read from memory."""
    decoding: DecodingOptions
    """How the text is decoded."""
    timeout_s: float
    """Deadline of the whole answer; default 120."""
    report_units_read: bool
    """Say in `Answer.units_read` which units each layer read; then at most 1,024 in context."""


class AskOptions(QuestionOptions, total=False):
    """What a question that stands alone may carry; a `Conversation` keeps the turns itself."""

    history: Sequence[Turn]
    """Earlier turns of the conversation, oldest first."""


class QuestionCalls:
    """The part of the client that asks."""

    _places: Places
    _readiness: Readiness
    _qa_address: str

    async def ask(
        self, session_id: str, question: str, **options: Unpack[AskOptions]
    ) -> AsyncGenerator[TextDelta | Answer, None]:
        """Asks, and yields the text as it is decoded, then the whole answer.

        Args:
            session_id: an existing session with at least one visible unit.
            question: 1 to 8,000 characters.
            **options: see AskOptions.

        Raises:
            LookbackError: SESSION_NOT_FOUND, SESSION_EMPTY, ASKED_AT_NOT_RECEIVED, ...
        """
        request = _request(session_id, question, options)
        begun_s = time.monotonic()
        deadline_s = begun_s + options.get("timeout_s", _TIMEOUT_S)
        address, hop_count = self._qa_address, 0
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                async with contextlib.aclosing(self._ask_at(address, request, left_s)) as parts:
                    async for part in parts:
                        yield part
                return
            except LookbackError as error:
                # Only a call that was refused names another server, or says that it is not ready:
                # nothing was yielded.
                named = named_address(error, address)
                if named is None or hop_count == MAX_HOPS:
                    await self._readiness.after(error, begun_s, deadline_s=deadline_s)
                    continue
                address, hop_count = named, hop_count + 1

    async def _ask_at(
        self, address: str, request: question_pb2.AskRequest, timeout_s: float
    ) -> AsyncGenerator[TextDelta | Answer, None]:
        stub: question_pb2_grpc.QuestionServiceAsyncStub
        stub = question_pb2_grpc.QuestionServiceStub(await self._places.channel(address))
        call = stub.Ask(request, timeout=timeout_s)
        try:
            async for response in call:
                match response.WhichOneof("response"):
                    case "delta":
                        yield TextDelta(text=response.delta.text)
                    case "answer":
                        yield answer_from(response.answer)
                        return
        except grpc.aio.AioRpcError as error:
            raise error_from_call(error, address) from error
        finally:
            call.cancel()
        raise LookbackError(
            reason=CONNECTION_LOST,
            message=f"{address} ended the call before the answer was complete",
            metadata={"address": address},
        )

    async def answer(self, session_id: str, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Asks like `ask`, and returns the whole answer."""
        parts = self.ask(session_id, question, **options)
        async with contextlib.aclosing(parts):
            async for part in parts:
                if isinstance(part, Answer):
                    return part
        raise AssertionError("ask ends with an Answer or raises")


def _request(session_id: str, question: str, options: AskOptions) -> question_pb2.AskRequest:
    return question_pb2.AskRequest(
        session_id=session_id,
        question=question,
        asked_at_s=options.get("asked_at_s"),
        cut=question_pb2.SNAPSHOT_CUT_BEFORE
        if options.get("before")
        else question_pb2.SNAPSHOT_CUT_UNSPECIFIED,
        choices=options.get("choices", ()),
        history=[turn_to(turn) for turn in options.get("history", ())],
        retrieval=retrieval_to(options.get("retrieval", _DEFAULT_RETRIEVAL)),
        decoding=decoding_to(options.get("decoding", _DEFAULT_DECODING)),
        report_units_read=options.get("report_units_read", False),
    )
