"""What a push's threads hand to one another: units to its session's lane, frames to its worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from svc.engine.ingest_session import FrameUnit, StreamIngest
from svc.ingest.encode_thread import EncodeThread, Lane
from svc.ingest.media_worker import MediaReport, MediaWorker

StreamThread: TypeAlias = EncodeThread[StreamIngest, FrameUnit]
"""The process's one thread for model and stores."""

StreamLane: TypeAlias = Lane[StreamIngest, FrameUnit]
"""A session's place on it."""

MakeWorker: TypeAlias = Callable[
    [bytes | None, Callable[[FrameUnit], None], Callable[[MediaReport], None]], MediaWorker
]
"""(resume blob, what takes the units, what is told of progress) -> the worker of a call."""
