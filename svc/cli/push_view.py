"""What a push looks like while it runs: a live line on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from svc.cli.times import format_time
from svc.client import (
    PushEvent,
    PushFinished,
    PushGap,
    PushLeft,
    PushOpened,
    PushProgress,
    PushReconnecting,
)

_LINE_EVERY_S = 5.0
_SPEED_OVER_S = 5.0


class PushView:
    """Shows events on standard error while its `with` block lasts."""

    def __init__(self, session: str, duration_s: float | None) -> None:
        """`duration_s`: of the video, if it is known."""
        self._session = session
        self._duration_s = duration_s
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._stack = contextlib.ExitStack()
        self._line_at = time.monotonic()
        self._away_for: str | None = None  # the reason that was said last
        self._progress: PushProgress | None = None
        self._recent: deque[tuple[float, float]] = deque()  # clock, received time

    def __enter__(self) -> PushView:
        if self._console.is_terminal:
            self._stack.enter_context(self._live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def show(self, event: PushEvent) -> None:
        """Shows one event."""
        if isinstance(event, PushOpened):
            self._away_for = None
            self._recent.clear()  # a crash has set the server back: this is another count
        match event:
            case PushProgress():
                self._progress = event
                self._note_speed(event)
                self._update()
            case PushOpened(durable_pts_s=None):
                self._say(f"pushing to {self._session}")
            case PushOpened(durable_pts_s=float() as durable_s):
                rounded = ", with a window that was stored rounded" if event.window_rounded else ""
                self._say(f"pushing to {self._session}, on from {format_time(durable_s)}{rounded}")
            case PushReconnecting() if event.error.reason != self._away_for:
                self._away_for = event.error.reason
                self._say(f"{event.error.message}; trying again for {event.give_up_in_s:.0f} s")
            case PushGap():
                self._say(
                    f"lost: {format_time(event.start_s)} - {format_time(event.end_s)} "
                    "went by while the service was away"
                )
            case PushFinished() | PushLeft():
                self._progress = event.progress or self._progress

    def summary(self, ended: PushFinished | PushLeft) -> str:
        """Returns the line that says how it ended."""
        verb = "finished" if isinstance(ended, PushFinished) else "left live"
        progress = self._progress
        if progress is None or progress.durable_pts_s is None:
            return f"{self._session}: {verb}, nothing stored"
        parts = [
            f"{self._session}: {verb}",
            f"{progress.durable_unit_count} units",
            f"stored up to {format_time(progress.durable_pts_s)}",
        ]
        left_out = {
            "already there": progress.known_frame_count,
            "too late": progress.late_frame_count,
            "duplicate": progress.duplicate_frame_count,
            "undecodable": progress.undecodable_packet_count,
        }
        parts += [f"{count} {name}" for name, count in left_out.items() if count]
        return ", ".join(parts)

    def _note_speed(self, progress: PushProgress) -> None:
        if progress.received_pts_s is None:
            return
        now = time.monotonic()
        self._recent.append((now, progress.received_pts_s))
        while now - self._recent[0][0] > _SPEED_OVER_S and len(self._recent) > 2:
            self._recent.popleft()

    def _speed(self) -> float | None:
        if len(self._recent) < 2:
            return None
        (start, from_s), (end, to_s) = self._recent[0], self._recent[-1]
        return (to_s - from_s) / (end - start) if end > start else None

    def _update(self) -> None:
        if self._console.is_terminal:
            self._live.update(Text(self._line(), no_wrap=True, overflow="ellipsis"), refresh=True)
        elif time.monotonic() - self._line_at >= _LINE_EVERY_S:
            self._line_at = time.monotonic()
            self._console.print(self._line(), soft_wrap=True)

    def _line(self) -> str:
        progress = self._progress
        if progress is None:
            return ""
        of = "" if self._duration_s is None else f" of {format_time(self._duration_s)}"
        parts = [
            f"received {_time(progress.received_pts_s)}{of}",
            f"visible {_time(progress.visible_pts_s)}",
            f"durable {_time(progress.durable_pts_s)}",
            f"{progress.visible_unit_count} units",
        ]
        speed = self._speed()
        if speed is not None:
            parts.append(f"{speed:.1f}x")
        return "  ".join(parts)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


def _time(time_s: float | None) -> str:
    return "-" if time_s is None else format_time(time_s)
