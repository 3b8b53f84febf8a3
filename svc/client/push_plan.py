"""What stays the same over all calls of a push."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from lookback.v1 import ingest_pb2, ingest_pb2_grpc
from svc.client.cursor import Cursor
from svc.client.pacing import Pacer
from svc.client.tail import SentTail


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PushPlan:
    """Where to, what, how fast, and until when."""

    stub: ingest_pb2_grpc.IngestServiceAsyncStub
    address: str
    opening: ingest_pb2.IngestRequest
    """First message of every call."""
    cursor: Cursor
    pacer: Pacer
    tail: SentTail
    finish: bool
    """Whether the end of the source ends the session's video."""
    stop: asyncio.Event
    """Once set, no more is sent."""
