"""Calls of IngestService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from lookback.v1 import ingest_pb2_grpc
from svc.client.cursor import open_cursor
from svc.client.events import PushEvent, PushProgress, progress_of
from svc.client.messages import open_request
from svc.client.pacing import Pacer
from svc.client.push import Push
from svc.client.push_plan import PushPlan
from svc.client.sessions import SessionCalls
from svc.client.source import AnySource
from svc.client.source_label import SourceLabel
from svc.client.tail import SentTail


class PushCalls(SessionCalls):
    """The part of the client that pushes video."""

    def push(
        self,
        session_id: str,
        source: AnySource,
        *,
        label: SourceLabel | None = None,
        join: bool = False,
        speed: float = 0.0,
        finish: bool = True,
        stop: asyncio.Event | None = None,
        give_up_after_s: float = 300.0,
        replay_limit_bytes: int = 64 * 2**20,
    ) -> AsyncGenerator[PushEvent, None]:
        """Pushes a source to an existing session until the server has it all, and says how it goes.

        Resumes by itself when the connection is lost, the server restarts or drains: from the key
        frame at or before what is durable. Goes on at another server when it is sent there (each
        time a PushReconnecting). Sends no more than the server's credit allows. The push
        runs while the iterator is iterated; close it (`contextlib.aclosing`) to break off.

        Args:
            session_id: an existing session.
            source: a file (`svc.video.sources.open_source`), or items as they come to be. One that
                cannot be read again is held from the last key frame before the durable time on;
                what is lost beyond `replay_limit_bytes` is told by PushGap.
            label: tells this video from others (`label_of_file`): a session of another is refused.
                None: not checked.
            join: push it although the session holds another video. Its times must begin after what
                the session has: SOURCE_MISMATCH otherwise.
            speed: seconds of video per second; 0: as fast as the server takes it.
            finish: end the session's video at the end of the source; else it stays live.
            stop: once set, no more is sent, and the push ends with PushLeft.
            give_up_after_s: how long to try, once open, without getting any further.
            replay_limit_bytes: see `source`.

        Yields:
            PushOpened, PushProgress ..., perhaps PushReconnecting, PushOpened, PushGap ..., and at
            the end PushFinished, or PushLeft where there was no `finish`.

        Raises:
            LookbackError: what trying again does not help (MEDIA_CORRUPT, SESSION_FINISHED,
                SOURCE_MISMATCH, ...), or GAVE_UP, REPLAY_OVERRUN, FINISH_UNKNOWN.
            svc.video.errors.VideoError: the source cannot be read.
        """
        pacer = Pacer(speed)

        async def final_progress() -> PushProgress:
            return progress_of(await self.get_session(session_id))

        async def stub_at(address: str) -> ingest_pb2_grpc.IngestServiceAsyncStub:
            return ingest_pb2_grpc.IngestServiceStub(await self._places.channel(address))

        async def events() -> AsyncGenerator[PushEvent, None]:
            cursor = open_cursor(source, replay_limit_bytes)  # begins to read what is live
            plan = PushPlan(
                stub=await stub_at(self._ingest_address),
                address=self._ingest_address,
                opening=open_request(session_id, cursor.media, label=label, join=join),
                cursor=cursor,
                pacer=pacer,
                tail=SentTail(),
                finish=finish,
                stop=stop or asyncio.Event(),
            )
            push = Push(
                plan,
                give_up_after_s=give_up_after_s,
                ready_within_s=self._readiness.within_s,
                final_progress=final_progress,
                stub_at=stub_at,
            )
            async with contextlib.aclosing(push.events()) as each:
                async for event in each:
                    yield event

        return events()
