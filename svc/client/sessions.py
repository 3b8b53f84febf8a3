"""Calls of SessionService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, TypeAlias, TypeVar

import grpc
from google.protobuf import field_mask_pb2
from google.protobuf.message import Message

from lookback.v1 import session_pb2, session_pb2_grpc
from svc.client.convert import keeping_to, session_from, settings_to, unit_from
from svc.client.errors import error_from_call
from svc.client.places import Places, following
from svc.client.readiness import Readiness
from svc.client.types import KeepingRules, OnFull, Pinned, Session, SessionSettings, Unit

_Response = TypeVar("_Response")
_Stub: TypeAlias = "session_pb2_grpc.SessionServiceAsyncStub"
_DEFAULT_SETTINGS = SessionSettings()
_DEFAULT_KEEPING = KeepingRules()


class SessionCalls:
    """The part of the client that manages sessions."""

    _places: Places
    _readiness: Readiness
    _ingest_address: str
    _unary_timeout_s: float

    async def create_session(
        self,
        session_id: str,
        *,
        display_name: str = "",
        settings: SessionSettings = _DEFAULT_SETTINGS,
        keeping: KeepingRules = _DEFAULT_KEEPING,
        exist_ok: bool = False,
    ) -> Session:
        """Creates an empty session.

        With `exist_ok` an existing one is fine whose settings and rules are those that are given.

        Raises:
            LookbackError: SESSION_EXISTS, INVALID_SESSION_ID, IDENTITY_MISMATCH, STORE_FULL.
        """
        request = session_pb2.CreateSessionRequest(
            session_id=session_id,
            display_name=display_name,
            settings=settings_to(settings),
            keeping=keeping_to(keeping),
            exist_ok=exist_ok,
        )
        response = await self._unary(lambda stub: stub.CreateSession, request)
        return session_from(response.session)

    async def get_session(self, session_id: str) -> Session:
        """Returns a session.

        Raises:
            LookbackError: SESSION_NOT_FOUND.
        """
        request = session_pb2.GetSessionRequest(session_id=session_id)
        response = await self._unary(lambda stub: stub.GetSession, request)
        return session_from(response.session)

    async def list_sessions(self, *, page_size: int = 0) -> AsyncIterator[Session]:
        """Yields all sessions in order of their ids, asking for the next page as it is needed.

        Args:
            page_size: sessions of one call; 0: the server's default.
        """
        page_token = ""
        while True:
            request = session_pb2.ListSessionsRequest(page_size=page_size, page_token=page_token)
            response = await self._unary(lambda stub: stub.ListSessions, request)
            for message in response.sessions:
                yield session_from(message)
            page_token = response.next_page_token
            if not page_token:
                return

    async def list_units(
        self,
        session_id: str,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[Unit]:
        """Yields a session's units in order of time, asking for the next page as it is needed.

        Args:
            session_id: the session.
            start_s: units that end at this time or later.
            end_s: units that begin before this time.
            page_size: units of one call; 0: the server's default.

        Raises:
            LookbackError: SESSION_NOT_FOUND, INVALID_REQUEST.
        """
        page_token = ""
        while True:
            request = session_pb2.ListUnitsRequest(
                session_id=session_id,
                start_s=start_s,
                end_s=end_s,
                page_size=page_size,
                page_token=page_token,
            )
            response = await self._unary(lambda stub: stub.ListUnits, request)
            for message in response.units:
                yield unit_from(message)
            page_token = response.next_page_token
            if not page_token:
                return

    async def update_session(
        self,
        session_id: str,
        *,
        display_name: str | None = None,
        session_budget_bytes: int | None = None,
        on_full: OnFull | Literal["default"] | None = None,
        retain_s: float | None = None,
    ) -> Session:
        """Changes a session's display name, or what is kept of it; None leaves as it is.

        A push that is open goes on under the rules that it was opened with.

        Args:
            session_id: the session.
            display_name: text for people.
            session_budget_bytes: 0: the server's default.
            on_full: "default": the server's.
            retain_s: infinity: for ever; 0: the server's default.

        Raises:
            LookbackError: SESSION_NOT_FOUND, INVALID_REQUEST.
            ValueError: there is nothing to change.
        """
        given = {
            "display_name": display_name,
            "keeping.session_budget_bytes": session_budget_bytes,
            "keeping.on_full": on_full,
            "keeping.retain_s": retain_s,
        }
        paths = [path for path, value in given.items() if value is not None]
        if not paths:
            raise ValueError("nothing to change was given")
        keeping = KeepingRules(
            session_budget_bytes=session_budget_bytes or 0,
            on_full=None if on_full == "default" else on_full,
            retain_s=retain_s or 0.0,
        )
        request = session_pb2.UpdateSessionRequest(
            session=session_pb2.Session(
                session_id=session_id,
                display_name=display_name or "",
                keeping=keeping_to(keeping),
            ),
            update_mask=field_mask_pb2.FieldMask(paths=paths),
        )
        response = await self._unary(lambda stub: stub.UpdateSession, request)
        return session_from(response.session)

    async def pin_span(self, session_id: str, start_s: float, end_s: float) -> Pinned:
        """Pins [start_s, end_s) of a session's time: nothing of it goes from now on.

        It may lie where no video has come yet. Pinned spans that touch become one.

        Raises:
            LookbackError: SESSION_NOT_FOUND, INVALID_REQUEST, TOO_MANY_SPANS; SPAN_DROPPED: a part
                of it was dropped before, and nothing was pinned.
        """
        request = session_pb2.PinSpanRequest(
            session_id=session_id, span=session_pb2.PinnedSpan(start_s=start_s, end_s=end_s)
        )
        response = await self._unary(lambda stub: stub.PinSpan, request)
        return Pinned(
            session=session_from(response.session),
            thinned_unit_count=response.thinned_unit_count,
        )

    async def unpin_span(self, session_id: str, start_s: float, end_s: float) -> Session:
        """Unpins what of [start_s, end_s) is pinned; the rest of a span that it cuts stays.

        Raises:
            LookbackError: SESSION_NOT_FOUND, INVALID_REQUEST, TOO_MANY_SPANS.
        """
        request = session_pb2.UnpinSpanRequest(
            session_id=session_id, span=session_pb2.PinnedSpan(start_s=start_s, end_s=end_s)
        )
        response = await self._unary(lambda stub: stub.UnpinSpan, request)
        return session_from(response.session)

    async def finish_session(self, session_id: str) -> Session:
        """Ends the video of a live session that nobody pushes to, as a push's `finish` does.

        Raises:
            LookbackError: SESSION_NOT_FOUND, SESSION_FINISHED; SESSION_BUSY while a client pushes
                to it.
        """
        request = session_pb2.FinishSessionRequest(session_id=session_id)
        response = await self._unary(lambda stub: stub.FinishSession, request)
        return session_from(response.session)

    async def delete_session(self, session_id: str) -> None:
        """Deletes a session with its memory.

        Raises:
            LookbackError: SESSION_NOT_FOUND; SESSION_BUSY while a client pushes to it.
        """
        request = session_pb2.DeleteSessionRequest(session_id=session_id)
        await self._unary(lambda stub: stub.DeleteSession, request)

    async def _unary(
        self, method: Callable[[_Stub], Callable[..., Awaitable[_Response]]], request: Message
    ) -> _Response:
        """Makes a call with the deadline of such calls, at the server that has the session."""

        async def call_at(address: str) -> _Response:
            stub: _Stub = session_pb2_grpc.SessionServiceStub(await self._places.channel(address))
            try:
                return await method(stub)(request, timeout=self._unary_timeout_s)
            except grpc.aio.AioRpcError as error:
                raise error_from_call(error, address) from error

        return await following(
            self._ingest_address,
            lambda address: self._readiness.waited(lambda: call_at(address)),
        )
