"""SessionService: what is asked is checked here; the store is asked off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

import grpc

from kvstore.errors import InvalidSessionIdError, KVStoreError
from kvstore.paths import check_session_id
from lookback.v1 import session_pb2, session_pb2_grpc
from svc.ingest.app import App
from svc.ingest.identity import AskedFrames
from svc.ingest.session_messages import (
    invalid,
    read_keeping,
    read_mask,
    read_page,
    read_span,
    session_message,
)
from svc.ingest.session_records import Session
from svc.ingest.timeline import units_between

logger = logging.getLogger(__name__)

SERVICE_NAME = session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name
MAX_DISPLAY_NAME_CHARS = 200
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

T = TypeVar("T")

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
        check_session_id(request.session_id)
        async with app.ownership.creating(request.session_id) as naming:
            session = await asyncio.to_thread(
                app.sessions.create,
                request.session_id,
                display_name=_display_name(request.display_name),
                sample_fps=request.settings.sample_fps,
                window_tokens=request.settings.window_token_count,
                reduction=request.settings.reduction,
                frames=AskedFrames(
                    width=request.settings.frame_width,
                    height=request.settings.frame_height,
                    unit_tokens=request.settings.unit_token_count,
                ),
                keeping=read_keeping(request.keeping),
                exist_ok=request.exist_ok,
                on_made=naming.note_made,
            )
        return session_pb2.CreateSessionResponse(session=await _message(app, session))

    async def GetSession(  # noqa: N802
        self, request: session_pb2.GetSessionRequest, context: _Context
    ) -> session_pb2.GetSessionResponse:
        """Returns one session."""
        app = self._app()
        session = await app.changes.find(request.session_id)
        return session_pb2.GetSessionResponse(session=await _message(app, session))

    async def ListSessions(  # noqa: N802
        self, request: session_pb2.ListSessionsRequest, context: _Context
    ) -> session_pb2.ListSessionsResponse:
        """Lists sessions in order of their ids."""
        app = self._app()
        if request.page_size < 0:
            raise invalid("page_size", request.page_size, f"in [0, {MAX_PAGE_SIZE}]")
        count = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        if request.page_token:
            try:
                check_session_id(request.page_token)
            except InvalidSessionIdError as error:
                raise invalid(
                    "page_token", repr(request.page_token), "a next_page_token of this service"
                ) from error
        found, more = await asyncio.to_thread(
            app.sessions.page, after=request.page_token, count=count
        )
        return session_pb2.ListSessionsResponse(
            sessions=[await _listed(app, session) for session in found],
            next_page_token=found[-1].session_id if more and found else "",
        )

    async def ListUnits(  # noqa: N802
        self, request: session_pb2.ListUnitsRequest, context: _Context
    ) -> session_pb2.ListUnitsResponse:
        """Lists the units of a session, in order of time."""
        app = self._app()
        session = await app.changes.find(request.session_id)
        units, next_unit = await asyncio.to_thread(
            units_between, app.settings.data_dir, session.session_id, **read_page(request)
        )
        return session_pb2.ListUnitsResponse(
            units=[session_pb2.Unit(**asdict(unit)) for unit in units],
            next_page_token="" if next_unit is None else str(next_unit),
        )

    async def UpdateSession(  # noqa: N802
        self, request: session_pb2.UpdateSessionRequest, context: _Context
    ) -> session_pb2.UpdateSessionResponse:
        """Changes the fields named by the mask."""
        app = self._app()
        given = request.session
        renamed, keeping_fields = read_mask(request.update_mask.paths)
        updating = app.changes.update(
            given.session_id,
            display_name=_display_name(given.display_name) if renamed else None,
            keeping=read_keeping(given.keeping),
            keeping_fields=keeping_fields,
        )
        session = await _to_its_end(updating)
        return session_pb2.UpdateSessionResponse(session=await _message(app, session))

    async def PinSpan(  # noqa: N802
        self, request: session_pb2.PinSpanRequest, context: _Context
    ) -> session_pb2.PinSpanResponse:
        """Pins a span of stream time."""
        app = self._app()
        pinned = await _to_its_end(app.changes.pin(request.session_id, read_span(request.span)))
        return session_pb2.PinSpanResponse(
            session=await _message(app, pinned.session),
            thinned_unit_count=pinned.thinned_unit_count,
        )

    async def UnpinSpan(  # noqa: N802
        self, request: session_pb2.UnpinSpanRequest, context: _Context
    ) -> session_pb2.UnpinSpanResponse:
        """Unpins a span of stream time."""
        app = self._app()
        session = await _to_its_end(app.changes.unpin(request.session_id, read_span(request.span)))
        return session_pb2.UnpinSpanResponse(session=await _message(app, session))

    async def FinishSession(  # noqa: N802
        self, request: session_pb2.FinishSessionRequest, context: _Context
    ) -> session_pb2.FinishSessionResponse:
        """Ends the video of a session that nobody pushes to."""
        app = self._app()
        session = await _to_its_end(app.changes.finish(request.session_id))
        return session_pb2.FinishSessionResponse(session=await _message(app, session))

    async def DeleteSession(  # noqa: N802
        self, request: session_pb2.DeleteSessionRequest, context: _Context
    ) -> session_pb2.DeleteSessionResponse:
        """Deletes a session with its memory."""
        await _to_its_end(self._app().changes.delete(request.session_id))
        return session_pb2.DeleteSessionResponse()


async def _to_its_end(change: Coroutine[Any, Any, T]) -> T:
    """Returns what a change returns, which goes on, and keeps pushes away, when its client goes."""
    return await asyncio.shield(asyncio.create_task(change))


def _display_name(text: str) -> str:
    if len(text) > MAX_DISPLAY_NAME_CHARS:
        raise invalid(
            "display_name", f"{len(text)} characters", f"at most {MAX_DISPLAY_NAME_CHARS}"
        )
    return text


async def _message(app: App, session: Session) -> session_pb2.Session:
    stats = await asyncio.to_thread(app.sessions.stats, session)
    return session_message(session, stats, app.settings)


async def _listed(app: App, session: Session) -> session_pb2.Session:
    """Returns the message of a session in a list; without stats when they cannot be read."""
    try:
        return await _message(app, session)
    except KVStoreError as error:
        logger.error(
            "session listed without stats",
            extra={"session": session.session_id, "reason": str(error)},
        )
        return session_message(session, None, app.settings)
