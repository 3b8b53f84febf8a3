"""A small server that keeps to the protocol of `lookback.v1`, and can be told where to fail.

It decodes nothing: an image or packet is a frame, and a unit. What it holds beyond the durable
frames is lost with each call, as in a crash.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lookback.v1 import (
    ingest_pb2,
    ingest_pb2_grpc,
    question_pb2,
    question_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from svc.client import LookbackClient
from svc.rpc.errors import Reason, RequestError
from svc.rpc.interceptor import ErrorInterceptor
from tests.svc.client.cuts import Cut, Failures
from tests.svc.client.material import one_answer


@dataclass
class StoredSession:
    """What the server remembers of a session."""

    durable: list[float] = field(default_factory=list)
    finished: bool = False
    fingerprint: str = ""
    """Of the source that was pushed last and stored."""
    display_name: str | None = None
    keeping: session_pb2.KeepingRules = field(default_factory=session_pb2.KeepingRules)
    pinned: list[tuple[float, float]] = field(default_factory=list)
    damaged: bool = False
    """Its memory cannot be read: it comes without stats."""


class ProtocolServer(
    ingest_pb2_grpc.IngestServiceServicer,
    session_pb2_grpc.SessionServiceServicer,
    question_pb2_grpc.QuestionServiceServicer,
):
    """Serves everything on one port."""

    def __init__(self) -> None:
        self.sessions: dict[str, StoredSession] = {}
        self.failures = Failures()
        self.credit = 4
        self.more_credit = True
        """Whether credit is renewed as items are taken."""
        self.never_ends = False
        """Whether a call whose client has said all hangs for ever."""
        self.durable_every = 3
        self.drain_after: int | None = None
        """Items of a call after which it drains; used up once."""
        self.refuse: RequestError | None = None
        """Raised at every call of the three services."""
        self.loading_call_count = 0
        """Calls of the three services that still meet a model that is being loaded."""
        self.refuse_opens: list[RequestError] = []
        """Raised one per ingest call, first ones first."""
        self.finishes_when_cut = False
        """Whether somebody else finishes a session when its ingest call is cut."""
        self.thinned_unit_count = 0
        """What pinning finds to be thinned already."""
        self.busy = False
        """Whether somebody pushes to every session."""
        self.refuse_items_after: tuple[int, RequestError] | None = None
        self.answer: Callable[[question_pb2.AskRequest], Iterator[question_pb2.AskResponse]]
        self.answer = one_answer
        self.asked: list[question_pb2.AskRequest] = []
        self.calls: list[list[str]] = []
        """Per ingest call: the kinds of its messages, in order."""

    async def Ingest(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self._maybe_refuse()
        call = _Call(self, aiter(request_iterator))
        self.calls.append(call.kinds)
        try:
            async for response in call.run():
                yield response
        except Cut:
            if self.finishes_when_cut:
                self.sessions[call.session_id].finished = True
            if not self.failures.clean_end:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async def CreateSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._maybe_refuse()
        if request.session_id in self.sessions and not request.exist_ok:
            raise RequestError(
                Reason.SESSION_EXISTS,
                f"session {request.session_id!r} exists already",
                session_id=request.session_id,
            )
        self.sessions.setdefault(request.session_id, StoredSession(keeping=request.keeping))
        return session_pb2.CreateSessionResponse(session=self._message(request.session_id))

    async def GetSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._maybe_refuse()
        return session_pb2.GetSessionResponse(session=self._message(request.session_id))

    async def ListSessions(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._maybe_refuse()
        names = sorted(name for name in self.sessions if name > request.page_token)
        size = request.page_size or 2
        response = session_pb2.ListSessionsResponse(
            sessions=[self._message(name) for name in names[:size]]
        )
        if len(names) > size:
            response.next_page_token = names[size - 1]
        return response

    async def UpdateSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._maybe_refuse()
        given, stored = request.session, self._stored(request.session.session_id)
        for path in request.update_mask.paths:
            if path == "display_name":
                stored.display_name = given.display_name
            else:
                name = path.removeprefix("keeping.")
                setattr(stored.keeping, name, getattr(given.keeping, name))
        return session_pb2.UpdateSessionResponse(session=self._message(given.session_id))

    async def PinSpan(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._maybe_refuse()
        stored = self._stored(request.session_id)
        stored.pinned.append((request.span.start_s, request.span.end_s))
        return session_pb2.PinSpanResponse(
            session=self._message(request.session_id), thinned_unit_count=self.thinned_unit_count
        )

    async def UnpinSpan(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._maybe_refuse()
        stored, span = self._stored(request.session_id), (request.span.start_s, request.span.end_s)
        stored.pinned = [each for each in stored.pinned if each != span]
        return session_pb2.UnpinSpanResponse(session=self._message(request.session_id))

    async def FinishSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._maybe_refuse()
        stored = self._stored(request.session_id)
        if stored.finished:
            raise RequestError(Reason.SESSION_FINISHED, "the session is finished")
        if self.busy:
            raise RequestError(Reason.SESSION_BUSY, "it has an open call")
        stored.finished = True
        return session_pb2.FinishSessionResponse(session=self._message(request.session_id))

    async def DeleteSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._maybe_refuse()
        self._stored(request.session_id)
        del self.sessions[request.session_id]
        return session_pb2.DeleteSessionResponse()

    async def Ask(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self._maybe_refuse()
        self._stored(request.session_id)
        self.asked.append(request)
        for response in self.answer(request):
            yield response

    def _maybe_refuse(self) -> None:
        if self.loading_call_count:
            self.loading_call_count -= 1
            raise RequestError(Reason.NOT_READY, "the server is still loading its model")
        if self.refuse is not None:
            raise self.refuse

    def _stored(self, session_id: str) -> StoredSession:
        if session_id not in self.sessions:
            raise RequestError(
                Reason.SESSION_NOT_FOUND, f"no session {session_id!r}", session_id=session_id
            )
        return self.sessions[session_id]

    def _message(self, session_id: str) -> session_pb2.Session:
        stored = self._stored(session_id)
        message = session_pb2.Session(
            session_id=session_id,
            display_name=session_id.upper() if stored.display_name is None else stored.display_name,
            state=session_pb2.Session.STATE_FINISHED
            if stored.finished
            else session_pb2.Session.STATE_LIVE,
            settings=session_pb2.SessionSettings(sample_fps=2.0, window_token_count=512),
            stats=session_pb2.SessionStats(
                visible_unit_count=len(stored.durable),
                durable_unit_count=len(stored.durable),
                token_count=36 * len(stored.durable),
                disk_bytes=8192,
            ),
            model="tiny@0123abcd",
            keeping=stored.keeping,
            keeping_in_force=session_pb2.KeepingRules(
                session_budget_bytes=stored.keeping.session_budget_bytes,
                on_full=stored.keeping.on_full or session_pb2.KeepingRules.ON_FULL_REFUSE,
                retain_s=stored.keeping.retain_s if stored.keeping.retain_s < math.inf else 0.0,
            ),
            pinned_spans=[
                session_pb2.PinnedSpan(start_s=start_s, end_s=end_s)
                for start_s, end_s in stored.pinned
            ],
        )
        message.create_time.FromSeconds(1_700_000_000)
        if stored.durable:
            message.stats.first_pts_s = stored.durable[0]
            message.stats.last_visible_pts_s = stored.durable[-1]
            message.stats.last_durable_pts_s = stored.durable[-1]
        if stored.damaged:
            message.ClearField("stats")
        return message


class _Call:
    """One ingest call."""

    def __init__(self, server: ProtocolServer, requests: AsyncIterator[Any]) -> None:
        self.kinds: list[str] = []
        self._server = server
        self._requests = requests
        self._pending: list[float] = []
        self._taken = 0
        self._credit = self._granted = server.credit  # granted: what the client was told
        self._decodable = False
        self.session_id = ""
        self._known = 0
        self._fingerprint = ""
        self._joins_after: float | None = None

    async def run(self) -> AsyncIterator[ingest_pb2.IngestResponse]:
        server = self._server
        first = await self._next()
        if first is None or first.WhichOneof("request") != "open":
            raise RequestError(Reason.OPEN_EXPECTED, "the first message must be `open`")
        server.failures.at("open")
        if server.refuse_opens:
            raise server.refuse_opens.pop(0)
        self.session_id = first.open.session_id
        stored = server._stored(self.session_id)
        if stored.finished:
            raise RequestError(Reason.SESSION_FINISHED, "the session is finished")
        self._fingerprint = fingerprint = first.open.source.fingerprint
        joined = bool(fingerprint and stored.durable and stored.fingerprint != fingerprint)
        if joined:
            self._joins_after = stored.durable[-1]
            if not first.open.join_source:
                raise RequestError(
                    Reason.SOURCE_MISMATCH,
                    f"the session holds video of {stored.fingerprint}, not of {fingerprint}; "
                    "join_source adds it all the same",
                )
        opened = ingest_pb2.Opened(
            credit_item_count=self._credit,
            target_fps=1.0,
            max_message_bytes=4096,
            joined=joined,
        )
        if stored.durable:
            opened.durable_pts_s = stored.durable[-1]
        yield ingest_pb2.IngestResponse(opened=opened)
        server.failures.at("opened")
        while (request := await self._next()) is not None:
            kind = request.WhichOneof("request")
            server.failures.at(kind)
            if kind == "finish":
                self._flush(stored)
                stored.finished = True
                server.failures.at("finished")
                yield ingest_pb2.IngestResponse(
                    finished=ingest_pb2.Finished(progress=self._progress(stored))
                )
                return
            for item in _items_of(request):
                self._take(item, stored)
            yield ingest_pb2.IngestResponse(progress=self._progress(stored))
            server.failures.at("progress")
            if server.drain_after is not None and self._taken >= server.drain_after:
                server.drain_after = None
                yield ingest_pb2.IngestResponse(draining=ingest_pb2.Draining())
                server.failures.at("draining")
        if server.never_ends:
            await asyncio.Event().wait()
        self._flush(stored)

    async def _next(self) -> Any:
        request = await anext(self._requests, None)
        if request is not None:
            self.kinds.append(request.WhichOneof("request"))
        return request

    def _take(self, item: Any, stored: StoredSession) -> None:
        server = self._server
        self._taken += 1
        if self._taken > self._granted:
            raise RequestError(Reason.CREDIT_EXCEEDED, f"{self._taken} sent of {self._granted}")
        if server.refuse_items_after is not None and self._taken > server.refuse_items_after[0]:
            raise server.refuse_items_after[1]
        if isinstance(item, ingest_pb2.Packet):
            self._decodable = self._decodable or item.key_frame
            if not self._decodable:
                return
        if self._joins_after is not None and item.pts_s <= self._joins_after:
            raise RequestError(
                Reason.SOURCE_MISMATCH, f"must begin after {self._joins_after}, not at {item.pts_s}"
            )
        self._joins_after = None
        known = (stored.durable + self._pending)[-1:]
        if not known or item.pts_s > known[0]:
            self._pending.append(item.pts_s)
        else:
            self._known += 1
        if len(self._pending) >= server.durable_every:
            self._flush(stored)
        if server.more_credit:
            self._credit = self._taken + server.credit

    def _flush(self, stored: StoredSession) -> None:
        stored.durable.extend(self._pending)
        if self._pending and self._fingerprint:
            stored.fingerprint = self._fingerprint
        self._pending = []

    def _progress(self, stored: StoredSession) -> ingest_pb2.Progress:
        known = stored.durable + self._pending
        self._granted = self._credit
        progress = ingest_pb2.Progress(
            visible_unit_count=len(known),
            durable_unit_count=len(stored.durable),
            credit_item_count=self._credit,
            received_frame_count=self._taken,
            known_frame_count=self._known,
        )
        if known:
            progress.received_pts_s = progress.visible_pts_s = known[-1]
        if stored.durable:
            progress.durable_pts_s = stored.durable[-1]
        return progress


def _items_of(request: ingest_pb2.IngestRequest) -> Sequence[Any]:
    if request.WhichOneof("request") == "chunk":
        return []  # nothing is decoded here
    return request.images.images or request.packets.packets


@asynccontextmanager
async def served(
    server: ProtocolServer, *, port: int = 0, serving: bool = True
) -> AsyncIterator[str]:
    """Serves on a port of this machine; yields the address."""
    grpc_server = grpc.aio.server(
        interceptors=[ErrorInterceptor(lambda error: None)],
        options=[("grpc.so_reuseport", 0), ("grpc.http2.bdp_probe", 0)],
    )
    status = health_pb2.HealthCheckResponse
    health_servicer = health.aio.HealthServicer()
    await health_servicer.set("", status.SERVING if serving else status.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, grpc_server)
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(server, grpc_server)
    session_pb2_grpc.add_SessionServiceServicer_to_server(server, grpc_server)
    question_pb2_grpc.add_QuestionServiceServicer_to_server(server, grpc_server)
    taken = grpc_server.add_insecure_port(f"127.0.0.1:{port}")
    await grpc_server.start()
    try:
        yield f"127.0.0.1:{taken}"
    finally:
        await grpc_server.stop(0)


@asynccontextmanager
async def connected(server: ProtocolServer, **options: Any) -> AsyncIterator[LookbackClient]:
    """A client, with these options, of a server that is just for it."""
    async with served(server) as address, LookbackClient(address, address, **options) as client:
        yield client
