"""The client: sessions, pushes and questions, at two addresses and where those send it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from svc.client.places import Places
from svc.client.pushes import PushCalls
from svc.client.questions import QuestionCalls
from svc.client.readiness import READY_WITHIN_S, Readiness


class LookbackClient(PushCalls, QuestionCalls):
    """Talks to one Lookback service. An asynchronous context manager; for one event loop.

    Where a session is served elsewhere, calls about it follow by themselves.

    Every method raises LookbackError: what the server refused, with its reason, or UNREACHABLE,
    CONNECTION_LOST, TIMED_OUT where there was no answer.
    """

    def __init__(
        self,
        ingest_address: str,
        qa_address: str,
        *,
        unary_timeout_s: float = 15.0,
        ready_within_s: float = READY_WITHIN_S,
        on_waiting: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Makes a client; it connects when it is first used.

        Args:
            ingest_address: "host:port" of the ingest process.
            qa_address: "host:port" of the QA process.
            unary_timeout_s: deadline of every call that manages sessions.
            ready_within_s: how long a call waits for a server that is still loading its model; 0:
                it ends with NOT_READY.
            on_waiting: told, in a sentence, when such waiting begins.
        """
        self._ingest_address = ingest_address
        self._qa_address = qa_address
        self._unary_timeout_s = unary_timeout_s
        self._places = Places()
        self._readiness = Readiness(ready_within_s, on_waiting)

    async def __aenter__(self) -> LookbackClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._places.close()
