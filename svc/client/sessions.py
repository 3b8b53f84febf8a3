"""Calls of SessionService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf import field_mask_pb2
from google.protobuf.message import Message

from lookback.v1 import session_pb2, session_pb2_grpc
from svc.client.convert import session_from, settings_to
from svc.client.errors import error_from_call
from svc.client.places import Places, following
from svc.client.types import Session, SessionSettings

_Response = TypeVar("_Response")
_Stub: TypeAlias = "session_pb2_grpc.SessionServiceAsyncStub"
_DEFAULT_SETTINGS = SessionSettings()


class SessionCalls:
    """The part of the client that manages sessions."""

    _places: Places
    _ingest_address: str
    _unary_timeout_s: float

    async def create_session(
        self,
        session_id: str,
        *,
        display_name: str = "",
        settings: SessionSettings = _DEFAULT_SETTINGS,
        exist_ok: bool = False,
    ) -> Session:
        """Creates an empty session; with `exist_ok` an existing one of the same settings is fine.

        Raises:
            LookbackError: SESSION_EXISTS, INVALID_SESSION_ID, IDENTITY_MISMATCH, STORE_FULL.
        """
        request = session_pb2.CreateSessionRequest(
            session_id=session_id,
            display_name=display_name,
            settings=settings_to(settings),
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

    async def update_session(self, session_id: str, *, display_name: str) -> Session:
        """Changes a session's display name.

        Raises:
            LookbackError: SESSION_NOT_FOUND, INVALID_REQUEST.
        """
        request = session_pb2.UpdateSessionRequest(
            session=session_pb2.Session(session_id=session_id, display_name=display_name),
            update_mask=field_mask_pb2.FieldMask(paths=["display_name"]),
        )
        response = await self._unary(lambda stub: stub.UpdateSession, request)
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

        return await following(self._ingest_address, call_at)
