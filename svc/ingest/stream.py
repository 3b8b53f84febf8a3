"""The seam between a push and the session it writes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from svc.engine.ingest_session import FrameUnit, StreamStatus
from svc.ingest.media_worker import MediaReport, MediaWorker


class Stream(Protocol):
    """A live session. Methods are called on the encode thread, unless they say otherwise."""

    @property
    def resume(self) -> bytes | None:
        """The blob of the last durable unit when the session was opened."""
        ...

    @property
    def status(self) -> StreamStatus:
        """What is visible and durable; from any thread."""
        ...

    def encode(self, units: Sequence[FrameUnit]) -> None:
        """Encodes and stores units, and makes them visible."""
        ...

    def flush(self) -> None:
        """Makes durable what is visible."""
        ...

    def close(self) -> None:
        """Lets go of the session; what is not durable is lost."""
        ...

    def received(self, pts_s: float, unit_count: int) -> None:
        """Tells readers of other processes what was received; from the media thread.

        Frames up to `pts_s` are in the first `unit_count` units since the session was opened, or
        belong to none.
        """
        ...


MakeWorker: TypeAlias = Callable[
    [bytes | None, Callable[[FrameUnit], None], Callable[[MediaReport], None]], MediaWorker
]
"""(resume blob, what takes the units, what is told of progress) -> the worker of a call."""
