"""What lies between the owner of a container decoder and its thread: bytes in, frames out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from svc.video.errors import DecoderStalledError
from svc.video.frames import Frame


class CancelledError(Exception):
    """The owner closed the decoder; its thread ends."""


class Exchange:
    """Two bounded queues under one lock.

    The owner calls `offer`, `end`, `frames_*` and `cancel`; the thread calls `read`, `put` and
    `finished`. Holds at most `byte_limit` bytes and one offer more, and `frame_limit` frames.
    When the owner has taken what an offer gives, the thread has done with it all and waits for
    more: frames never lie here until the next bytes come, and how many come is no matter of luck.
    """

    def __init__(self, *, byte_limit: int, frame_limit: int, stall_timeout_s: float) -> None:
        """Make it empty."""
        self._byte_limit = byte_limit
        self._frame_limit = frame_limit
        self._stall_timeout_s = stall_timeout_s
        self._changed = threading.Condition()
        self._pieces: deque[memoryview] = deque()
        self._byte_count = 0
        self._frames: deque[Frame] = deque()
        self._starved = False
        self._ended = False
        self._cancelled = False
        self._finished = False
        self._error: Exception | None = None
        self._progress_count = 0
        self.ignored_bytes = 0
        """Bytes offered after the thread had finished."""

    # --- the owner's side

    def offer(self, data: bytes) -> None:
        """Add bytes. The frames of the offer before must have been taken."""
        with self._changed:
            if self._byte_count > self._byte_limit:
                raise RuntimeError("exhaust the iterator of a push before the next push")
            if self._finished:
                self.ignored_bytes += len(data)
                return
            self._starved = False
            self._pieces.append(memoryview(data))
            self._byte_count += len(data)
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no more bytes come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Make the thread end at its next step; what waits is let go."""
        with self._changed:
            self._cancelled = True
            self._pieces.clear()
            self._byte_count = 0
            self._frames.clear()
            self._changed.notify_all()

    def frames_until_taken(self) -> Iterator[Frame]:
        """Yield frames until the thread has used all bytes and waits for more.

        Raises:
            DecoderStalledError: neither a byte was taken nor a frame given in time.
        """
        return self._take(to_the_end=False)

    def frames_until_finished(self) -> Iterator[Frame]:
        """Yield frames until the thread has finished; raises as `frames_until_taken`."""
        return self._take(to_the_end=True)

    def _take(self, *, to_the_end: bool) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._wait_for_progress(to_the_end)
                if not self._frames:
                    if self._error is not None:
                        raise self._error
                    return
                frame = self._frames.popleft()
                self._changed.notify_all()
            yield frame

    def _wait_for_progress(self, to_the_end: bool) -> None:
        while not (self._frames or self._finished or (not to_the_end and self._starved)):
            seen = self._progress_count
            if not self._changed.wait_for(
                lambda seen=seen: self._progress_count != seen,  # type: ignore[misc]
                timeout=self._stall_timeout_s,
            ):
                raise DecoderStalledError(stall_timeout_s=self._stall_timeout_s)

    # --- the thread's side

    def read(self, byte_count: int) -> bytes:
        """Return 1 to `byte_count` bytes, waiting for them; b"" at the end.

        Its name and form are those of a file, for PyAV to read from.
        """
        with self._changed:
            if not self._pieces and not self._ended:
                self._starved = True
                self._step()
            self._changed.wait_for(lambda: self._pieces or self._ended or self._cancelled)
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            if len(piece) > byte_count:
                self._pieces.appendleft(piece[byte_count:])
                piece = piece[:byte_count]
            self._byte_count -= len(piece)
            self._step()
            return bytes(piece)

    def put(self, frame: Frame) -> None:
        """Give a frame out, waiting for room.

        Raises:
            CancelledError: the owner wants no more.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._frames) < self._frame_limit or self._cancelled)
            if self._cancelled:
                raise CancelledError
            self._frames.append(frame)
            self._step()

    def finished(self, error: Exception | None) -> None:
        """Say that the thread is done, and why if that is an error."""
        with self._changed:
            self._finished = True
            self._error = error
            self.ignored_bytes += self._byte_count
            self._pieces.clear()
            self._byte_count = 0
            self._step()

    @property
    def ended(self) -> bool:
        """Whether all bytes have come."""
        return self._ended

    def _step(self) -> None:
        self._progress_count += 1
        self._changed.notify_all()
