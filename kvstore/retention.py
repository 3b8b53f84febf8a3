"""What may go from a session, and in which order: for its writer, and where nobody writes it.

Segments go whole and from the front only, since only the front of a log can go. Never the last one,
nor what the next unit sees, nor a segment in which something is pinned, nor what lies behind it.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Protocol, TypeVar

from kvstore.errors import BlockCorruptError
from kvstore.paths import segment_path, session_hash
from kvstore.pins import PinsNow, Span, touches
from kvstore.wholesegment import read_segment


class Segment(Protocol):
    """What is known of a segment, by whoever decides."""

    @property
    def number(self) -> int:
        """The number in its file's name."""

    @property
    def token_count(self) -> int:
        """Of its units, as they are now."""

    @property
    def block_count(self) -> int:
        """Of its blocks."""

    @property
    def first_pts_s(self) -> float:
        """Of the first frame of its first unit; -inf where it was not looked up."""

    @property
    def last_pts_s(self) -> float:
        """Of the last frame of its last unit; inf where it was not looked up."""

    @property
    def written_unix_s(self) -> float:
        """By the wall clock of its last block."""


class ThinnedSegment(Segment, Protocol):
    """A segment of which it is known how thin it is."""

    @property
    def generation(self) -> int:
        """How often it was thinned."""


S = TypeVar("S", bound=Segment)
T = TypeVar("T", bound=ThinnedSegment)


def unseen(segments: Sequence[S], keep_tokens: int) -> list[S]:
    """The segments, oldest first, that the next unit does not see, without the last of all.

    Args:
        segments: all of a session's, oldest first; so below.
        keep_tokens: what the next unit sees at most: what is left holds as many.
    """
    found: list[S] = []
    left = sum(segment.token_count for segment in segments)
    for segment in segments[:-1]:
        left -= segment.token_count
        if left < keep_tokens:
            break
        found.append(segment)
    return found


def droppable(
    segments: Sequence[S], *, keep_tokens: int, is_pinned: Callable[[S], bool]
) -> Iterator[S]:
    """The segments that may go, oldest first: of the unseen those before the first pinned one.

    `is_pinned` is asked of each right before it is given: take no more than are to go.
    """
    return takewhile(lambda each: not is_pinned(each), unseen(segments, keep_tokens))


def aged(
    segments: Sequence[S],
    *,
    keep_tokens: int,
    is_pinned: Callable[[S], bool],
    retain_s: float,
    newest_pts_s: float,
    now_unix_s: float,
    idle_s: float = 0.0,
) -> list[S]:
    """The segments that may go and are too old, oldest first; see `droppable`, `expired_count`."""
    count = expired_count(
        segments,
        retain_s=retain_s,
        newest_pts_s=newest_pts_s,
        now_unix_s=now_unix_s,
        idle_s=idle_s,
    )
    old = unseen(segments, keep_tokens)[:count]
    return list(takewhile(lambda each: not is_pinned(each), old))


def thinnable(segments: Sequence[T], keep_tokens: int) -> list[T]:
    """The segments that may lose tokens, but for pinned units: thinned least, then oldest first."""
    return sorted(unseen(segments, keep_tokens), key=thinned_least)


def thinned_least(segment: ThinnedSegment) -> tuple[int, int]:
    """What is thinned first has the least."""
    return segment.generation, segment.number


def expired_count(
    segments: Iterable[Segment],
    *,
    retain_s: float,
    newest_pts_s: float,
    now_unix_s: float,
    idle_s: float = 0.0,
) -> int:
    """How many of the segments, oldest first, are older than what is to be kept.

    Age has two witnesses, and the younger counts. One is the wall clock: the time since a segment
    was last written. The other is the stream's own time, from the segment's last unit to the
    newest, and how long the stream has been seen to stand still since, by a clock that nobody sets.
    A jump of either, which makes everything look old to it, drops nothing that is young.

    Args:
        retain_s: how long units are kept; > 0.
        newest_pts_s: of the session's last unit.
        now_unix_s: by the wall clock.
        idle_s: for how long the session has been seen unchanged.
    """
    old = takewhile(
        lambda segment: (
            newest_pts_s - segment.last_pts_s + idle_s > retain_s
            and now_unix_s - segment.written_unix_s > retain_s
        ),
        segments,
    )
    return sum(1 for _ in old)


def counts_to_free(
    queues: Sequence[Iterable[S]], wanted_bytes: int, bytes_of: Callable[[S], int]
) -> list[int]:
    """How many segments of each session must go to free so much: those first that are oldest.

    Oldest are those that were written first; of one session always from the front, whatever a
    clock said. All go where all are too few.

    Args:
        queues: per session what may go, oldest first; no more is taken of it than goes, and one.
        wanted_bytes: to be freed.
        bytes_of: what a segment takes of the disk.
    """
    counts = [0] * len(queues)
    left = [iter(queue) for queue in queues]
    ahead: list[tuple[float, int, int, S]] = []

    def look(which: int, written_s: float) -> None:
        segment = next(left[which], None)
        if segment is not None:
            # One that seems to be older than those before it comes right behind them.
            written_s = max(written_s, segment.written_unix_s)
            heapq.heappush(ahead, (written_s, counts[which], which, segment))

    for which in range(len(queues)):
        look(which, -math.inf)
    while wanted_bytes > 0 and ahead:
        written_s, _, which, segment = heapq.heappop(ahead)
        wanted_bytes -= bytes_of(segment)
        counts[which] += 1
        if wanted_bytes > 0:
            look(which, written_s)
    return counts


def pin_check(
    folder: Path,
    pinned: PinsNow,
    *,
    on_damage: Callable[[Segment, Exception], None],
) -> Callable[[Segment], bool]:
    """What tells whether one of a segment's units is pinned, for `droppable` and `aged`.

    Where something is pinned, unit tables are read. A segment whose tables are damaged or cannot
    be read counts as pinned: what is pinned may be in it.

    Args:
        folder: of the session.
        pinned: asked once, when first something is to go.
        on_damage: is told of such a segment.
    """
    pinned_now = functools.cache(pinned)

    def is_pinned(segment: Segment) -> bool:
        spans = pinned_now()
        try:
            return bool(spans) and _holds_unit_in(folder, segment, spans)
        except (BlockCorruptError, OSError) as error:
            on_damage(segment, error)
            return True

    return is_pinned


def _holds_unit_in(folder: Path, segment: Segment, spans: Sequence[Span]) -> bool:
    path = segment_path(folder, segment.number)
    with open(path, "rb") as file:
        whole = read_segment(
            file.fileno(),
            path,
            number=segment.number,
            session_hash=session_hash(folder.name),
            session_id=folder.name,
            block_count=segment.block_count,
        )
    tables = (block.table.rows for block in whole.blocks)
    return any(touches(spans, rows["first_pts_s"], rows["last_pts_s"]).any() for rows in tables)
