"""SessionService: what is asked is checked here; the store is asked off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import timestamp_pb2

from kvstore.errors import InvalidSessionIdError, KVStoreError
from kvstore.paths import check_session_id
from lookback.v1 import session_pb2, session_pb2_grpc
from svc.ingest.app import App
from svc.ingest.sessions import Session, Sessions
from svc.ingest.stats import SessionStats
from svc.rpc.errors import Reason, RequestError

logger = logging.getLogger(__name__)

SERVICE_NAME = session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name
MAX_DISPLAY_NAME_CHARS = 200
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_NANOS = 1_000_000_000

_Context = grpc.aio.ServicerContext[Any, Any]


class SessionService(session_pb2_grpc.SessionServiceServicer):
    """Manages sessions."""

    def __init__(self, app: Callable[[], App]) -> None:
        """`app` gives what serves the calls, or refuses while it is being loaded."""
        self._app = app

    async def CreateSession(  # noqa: N802 - named by the protocol
        self, request: session_pb2.CreateSessionRequest, context: _Context
    ) -> session_pb2.CreateSessionResponse:
        """Creates a session."""
        app = self._app()
        sessions = app.sessions
        check_session_id(request.session_id)
        async with app.ownership.creating(request.session_id) as naming:
            session = await asyncio.to_thread(
                sessions.create,
                request.session_id,
                display_name=_display_name(request.display_name),
                sample_fps=request.settings.sample_fps,
                window_tokens=request.settings.window_token_count,
                exist_ok=request.exist_ok,
                on_made=naming.note_made,
            )
        return session_pb2.CreateSessionResponse(session=await _message(sessions, session))

    async def GetSession(  # noqa: N802
        self, request: session_pb2.GetSessionRequest, context: _Context
    ) -> session_pb2.GetSessionResponse:
        """Returns one session."""
        app = self._app()
        sessions = app.sessions
        session = await app.get_session(request.session_id)
        return session_pb2.GetSessionResponse(session=await _message(sessions, session))

    async def ListSessions(  # noqa: N802
        self, request: session_pb2.ListSessionsRequest, context: _Context
    ) -> session_pb2.ListSessionsResponse:
        """Lists sessions in order of their ids."""
        sessions = self._app().sessions
        if request.page_size < 0:
            raise _invalid("page_size", request.page_size, f"in [0, {MAX_PAGE_SIZE}]")
        count = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        if request.page_token:
            try:
                check_session_id(request.page_token)
            except InvalidSessionIdError as error:
                raise _invalid(
                    "page_token", repr(request.page_token), "a next_page_token of this service"
                ) from error
        found, more = await asyncio.to_thread(sessions.page, after=request.page_token, count=count)
        return session_pb2.ListSessionsResponse(
            sessions=[await _listed(sessions, session) for session in found],
            next_page_token=found[-1].session_id if more and found else "",
        )

    async def UpdateSession(  # noqa: N802
        self, request: session_pb2.UpdateSessionRequest, context: _Context
    ) -> session_pb2.UpdateSessionResponse:
        """Changes the fields named by the mask."""
        app = self._app()
        sessions = app.sessions
        if list(request.update_mask.paths) != ["display_name"]:
            given = ", ".join(request.update_mask.paths) or "nothing"
            raise _invalid("update_mask", given, "display_name")
        await app.get_session(request.session.session_id)
        session = await asyncio.to_thread(
            sessions.rename,
            request.session.session_id,
            _display_name(request.session.display_name),
        )
        return session_pb2.UpdateSessionResponse(session=await _message(sessions, session))

    async def FinishSession(  # noqa: N802
        self, request: session_pb2.FinishSessionRequest, context: _Context
    ) -> session_pb2.FinishSessionResponse:
        """Ends the video of a session that nobody pushes to."""
        app = self._app()
        # A client that goes away ends its call; what keeps pushes away lasts as long as the work.
        finishing = asyncio.create_task(app.finish_session(request.session_id))
        session = await asyncio.shield(finishing)
        return session_pb2.FinishSessionResponse(session=await _message(app.sessions, session))

    async def DeleteSession(  # noqa: N802
        self, request: session_pb2.DeleteSessionRequest, context: _Context
    ) -> session_pb2.DeleteSessionResponse:
        """Deletes a session with its memory."""
        # A client that goes away ends its call; the deletion goes on, and keeps pushes away.
        deletion = asyncio.create_task(self._app().delete_session(request.session_id))
        await asyncio.shield(deletion)
        return session_pb2.DeleteSessionResponse()


def _invalid(field: str, given: object, allowed: str) -> RequestError:
    return RequestError(
        Reason.INVALID_REQUEST,
        f"{field} must be {allowed}, got {given}",
        field=field,
        given=given,
        allowed=allowed,
    )


def _display_name(text: str) -> str:
    if len(text) > MAX_DISPLAY_NAME_CHARS:
        raise _invalid(
            "display_name", f"{len(text)} characters", f"at most {MAX_DISPLAY_NAME_CHARS}"
        )
    return text


async def _message(sessions: Sessions, session: Session) -> session_pb2.Session:
    return _write(session, await asyncio.to_thread(sessions.stats, session))


async def _listed(sessions: Sessions, session: Session) -> session_pb2.Session:
    """Returns the message of a session in a list; without stats when they cannot be read."""
    try:
        return await _message(sessions, session)
    except KVStoreError as error:
        logger.error(
            "session listed without stats",
            extra={"session": session.session_id, "reason": str(error)},
        )
        return _write(session, None)


def _write(session: Session, stats: SessionStats | None) -> session_pb2.Session:
    states = {
        "live": session_pb2.Session.STATE_LIVE,
        "finished": session_pb2.Session.STATE_FINISHED,
    }
    created = timestamp_pb2.Timestamp()
    created.FromNanoseconds(int(session.created_unix_s * _NANOS))
    return session_pb2.Session(
        session_id=session.session_id,
        display_name=session.display_name,
        state=states[session.state],
        create_time=created,
        settings=session_pb2.SessionSettings(
            sample_fps=session.settings.sample_fps,
            window_token_count=session.settings.window_tokens,
        ),
        stats=None
        if stats is None
        else session_pb2.SessionStats(
            visible_unit_count=stats.visible_unit_count,
            durable_unit_count=stats.durable_unit_count,
            first_pts_s=stats.first_pts_s,
            last_visible_pts_s=stats.last_visible_pts_s,
            last_durable_pts_s=stats.last_durable_pts_s,
            token_count=stats.token_count,
            disk_bytes=stats.disk_bytes,
            gap_count=stats.gap_count,
            dropped_unit_count=stats.dropped_unit_count,
        ),
        model=session.model,
        kv_encoding=session.settings.kv_encoding,
    )
