"""The client: sessions, pushes and questions over two connections."""

from __future__ import annotations

import contextlib
from types import TracebackType

from lookback.v1 import ingest_pb2_grpc, question_pb2_grpc, session_pb2_grpc
from svc.client.channel import open_channel
from svc.client.pushes import PushCalls
from svc.client.questions import QuestionCalls


class LookbackClient(PushCalls, QuestionCalls):
    """Talks to one Lookback service. An asynchronous context manager; for one event loop.

    Every method raises LookbackError: what the server refused, with its reason, or UNREACHABLE,
    CONNECTION_LOST, TIMED_OUT where there was no answer.
    """

    def __init__(
        self, ingest_address: str, qa_address: str, *, unary_timeout_s: float = 15.0
    ) -> None:
        """Makes a client; it connects when it is first used.

        Args:
            ingest_address: "host:port" of the ingest process.
            qa_address: "host:port" of the QA process.
            unary_timeout_s: deadline of every call that manages sessions.
        """
        self._ingest_address = ingest_address
        self._qa_address = qa_address
        self._unary_timeout_s = unary_timeout_s
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> LookbackClient:
        ingest = await self._stack.enter_async_context(open_channel(self._ingest_address))
        qa = await self._stack.enter_async_context(open_channel(self._qa_address))
        self._sessions = session_pb2_grpc.SessionServiceStub(ingest)
        self._ingest = ingest_pb2_grpc.IngestServiceStub(ingest)
        self._questions = question_pb2_grpc.QuestionServiceStub(qa)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
