"""The client: sessions, pushes and questions, at two addresses and where those send it."""

from __future__ import annotations

from types import TracebackType

from svc.client.places import Places
from svc.client.pushes import PushCalls
from svc.client.questions import QuestionCalls


class LookbackClient(PushCalls, QuestionCalls):
    """Talks to one Lookback service. An asynchronous context manager; for one event loop.

    Where a session is served elsewhere, calls about it follow by themselves.

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
        self._places = Places()

    async def __aenter__(self) -> LookbackClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._places.close()
