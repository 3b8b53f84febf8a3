"""Calls of IngestService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from lookback.v1 import ingest_pb2_grpc
from svc.client.cursor import open_cursor
from svc.client.events import PushEvent, PushProgress, progress_of
from svc.client.pacing import Pacer
from svc.client.push import Push
from svc.client.sessions import SessionCalls
from svc.client.source import AnySource


class PushCalls(SessionCalls):
    """The part of the client that pushes video."""

    _ingest: ingest_pb2_grpc.IngestServiceAsyncStub

    def push(
        self,
        session_id: str,
        source: AnySource,
        *,
        speed: float = 0.0,
        finish: bool = True,
        stop: asyncio.Event | None = None,
        give_up_after_s: float = 300.0,
        replay_limit_bytes: int = 64 * 2**20,
    ) -> AsyncGenerator[PushEvent, None]:
        """Pushes a source to an existing session until the server has it all, and says how it goes.

        Resumes by itself when the connection is lost, the server restarts or drains: from the key
        frame at or before what is durable. Sends no more than the server's credit allows. The push
        runs while the iterator is iterated; close it (`contextlib.aclosing`) to break off.

        Args:
            session_id: an existing session.
            source: a file (`svc.video.sources.open_source`), or items as they come to be. One that
                cannot be read again is held from the last key frame before the durable time on;
                what is lost beyond `replay_limit_bytes` is told by PushGap.
            speed: seconds of video per second; 0: as fast as the server takes it.
            finish: end the session's video at the end of the source; else it stays live.
            stop: once set, no more is sent, and the push ends with PushLeft.
            give_up_after_s: how long to try, once open, without getting any further.
            replay_limit_bytes: see `source`.

        Yields:
            PushOpened, PushProgress ..., perhaps PushReconnecting, PushOpened, PushGap ..., and at
            the end PushFinished, or PushLeft where there was no `finish`.

        Raises:
            LookbackError: what trying again does not help (MEDIA_CORRUPT, SESSION_FINISHED, ...),
                or GAVE_UP, REPLAY_OVERRUN.
            svc.video.errors.VideoError: the source cannot be read.
        """
        return self._push(
            session_id,
            source,
            pacer=Pacer(speed),
            finish=finish,
            stop=stop or asyncio.Event(),
            give_up_after_s=give_up_after_s,
            replay_limit_bytes=replay_limit_bytes,
        )

    async def _push(
        self,
        session_id: str,
        source: AnySource,
        *,
        pacer: Pacer,
        finish: bool,
        stop: asyncio.Event,
        give_up_after_s: float,
        replay_limit_bytes: int,
    ) -> AsyncGenerator[PushEvent, None]:
        async def final_progress() -> PushProgress:
            return progress_of(await self.get_session(session_id))

        push = Push(
            stub=self._ingest,
            address=self._ingest_address,
            session_id=session_id,
            cursor=open_cursor(source, replay_limit_bytes),
            pacer=pacer,
            finish=finish,
            stop=stop,
            give_up_after_s=give_up_after_s,
            final_progress=final_progress,
        )
        async with contextlib.aclosing(push.events()) as events:
            async for event in events:
                yield event
