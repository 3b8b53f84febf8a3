"""Making room in a session that is full, and letting go of what is too old, by its rules.

Owned by the writer's thread. What goes is never what the next unit sees, nor what is pinned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from kvstore.blockread import TornBlockError
from kvstore.diskio import DiskIO
from kvstore.diskuse import path_bytes, used_bytes
from kvstore.dropping import LogSegment, SegmentQueue, drop_below
from kvstore.errors import BlockCorruptError, BudgetExceededError, KVStoreError, StoreFullError
from kvstore.limits import BlockLimits
from kvstore.paths import segment_path, session_hash
from kvstore.pins import PinsNow
from kvstore.retention import (
    Segment,
    aged,
    counts_to_free,
    droppable,
    pin_check,
    thinnable,
    thinned_least,
    unseen,
)
from kvstore.rewriting import NoRoomAsideError, choose_tokens, file_bytes, rewrite
from kvstore.space import Shortage, Space
from kvstore.thinblock import DamagedSegmentError
from kvstore.wholesegment import WholeSegment, read_segment

logger = logging.getLogger(__name__)

_SPARE_BYTES = 256 << 20
"""Thinning goes on down to the low watermark, but no further than this at once: the push waits."""

Spans = tuple[tuple[float, float], ...]


class Freeing:
    """Drops and thins segments of one session's log."""

    def __init__(
        self,
        folder: Path,
        segments: SegmentQueue,
        *,
        limits: BlockLimits,
        epoch: int,
        space: Space,
        pinned: PinsNow,
        check_owned: Callable[[], None],
        announce_floor: Callable[[int], None],
        announce_rewrite: Callable[[], None],
        io: DiskIO,
    ) -> None:
        """Be asked by `space` for room from now on, where the budget's rule makes some.

        Args:
            folder: of the session.
            segments: of its log.
            limits: the rules.
            epoch: of this writer.
            space: of the session.
            pinned: what must stay as it is.
            check_owned: raises when the session is not this writer's any more.
            announce_floor: tells readers the first unit that is left.
            announce_rewrite: tells readers that a segment was written anew.
            io: the system calls.
        """
        self._folder = folder
        self._segments = segments
        self._limits = limits
        self._epoch = epoch
        self._space = space
        self._pinned = pinned
        self._check_owned = check_owned
        self._announce_floor = announce_floor
        self._announce_rewrite = announce_rewrite
        self._io = io
        if limits.budget.on_full == "drop_oldest":
            space.free = self._drop_oldest
        elif limits.budget.on_full == "thin":
            space.free = self._thin

    def drop_expired(self, newest_pts_s: float) -> None:
        """Drop the segments that are older than what is to be kept.

        Where nobody can say what is pinned, all stays.

        Raises:
            WriterFencedError: the session is not this writer's any more.
            OSError: the disk failed; recovery finishes it, or finds nothing begun.
        """
        try:
            expired = aged(
                self._segments.all(),
                keep_tokens=self._limits.keep_tokens,
                is_pinned=self._pin_check(),
                retain_s=self._limits.retain_s,
                newest_pts_s=newest_pts_s,
                now_unix_s=time.time(),
            )
        except KVStoreError as error:
            self._warn("what is pinned cannot be told, nothing is dropped for its age", error)
            return
        if expired:
            self._drop(len(expired))

    def _drop_oldest(self, shortage: Shortage) -> bool:
        """Drop segments until there is room again; False when none may go."""
        segments, keep_tokens = self._segments.all(), self._limits.keep_tokens
        loose = droppable(segments, keep_tokens=keep_tokens, is_pinned=self._pin_check())
        wanted_bytes = shortage.excess_bytes + shortage.spare_bytes
        try:
            (count,) = counts_to_free([loose], wanted_bytes, self._disk_bytes)
        except KVStoreError as error:
            shortage.error.explain(f"what is pinned cannot be told ({error})")
            return False
        if count:
            self._drop(count)
        elif unseen(segments, keep_tokens):
            shortage.error.explain("the oldest video of the session is pinned")
        else:
            shortage.error.explain(self._why_all_stays(shortage.error, segments))
        return count > 0

    def _why_all_stays(self, error: StoreFullError, segments: list[LogSegment]) -> str:
        """Say what the session's budget is full of where no segment may go."""
        log_bytes = sum(map(self._disk_bytes, segments))
        other_bytes = used_bytes(self._folder) - log_bytes
        why = (
            f"none of it may go: the last segment and what the next unit sees take {log_bytes} "
            f"bytes, the key index and what else there is {other_bytes}"
        )
        if not isinstance(error, BudgetExceededError) or error.path != self._folder:
            return why
        token_count = sum(segment.token_count for segment in segments)
        block_bytes = [self._disk_bytes(each) // max(1, each.block_count) for each in segments]
        least_bytes = self._limits.least_budget_bytes(
            other_bytes=other_bytes,
            keep_bytes=self._limits.keep_tokens * log_bytes // max(1, token_count),
            block_bytes=max([error.needed_bytes, *block_bytes]),
        )
        return f"{why}; {error.budget} must be some {least_bytes} for the oldest to make room"

    def _disk_bytes(self, segment: LogSegment) -> int:
        return path_bytes(segment_path(self._folder, segment.number))

    def _drop(self, segment_count: int) -> None:
        self._check_owned()
        floor = self._segments.floor_above(segment_count)

        def announce(first_unit: int) -> None:
            # Only now: where the floor could not be written, they are all still there.
            self._segments.drop(segment_count)
            self._announce_floor(first_unit)

        hash_ = session_hash(self._folder.name)
        drop_below(self._folder, hash_, floor, self._io, announce)

    def _spans(self) -> Spans:
        return tuple((float(start), float(stop)) for start, stop in self._pinned())

    def _pin_check(self) -> Callable[[LogSegment], bool]:
        return pin_check(self._folder, self._spans, on_damage=self._tell_undroppable)

    def _tell_undroppable(self, segment: Segment, error: Exception) -> None:
        text = "a damaged segment is not dropped: what is pinned may be in it"
        self._warn(text, error, segment=segment_path(self._folder, segment.number).name)

    def _read(self, fd: int, path: Path, segment: LogSegment) -> WholeSegment:
        """The headers and unit tables of a segment.

        Raises:
            BlockCorruptError, DamagedSegmentError: they are damaged, or cannot be read.
        """
        try:
            return read_segment(
                fd,
                path,
                number=segment.number,
                session_hash=session_hash(self._folder.name),
                session_id=self._folder.name,
                block_count=segment.block_count,
            )
        except OSError as error:
            raise DamagedSegmentError(str(error)) from error

    def _warn(self, text: str, error: Exception, **extra: str) -> None:
        named = {"session": self._folder.name, "reason": str(error)}
        logger.warning(text, extra=named | extra)

    def _thin(self, shortage: Shortage) -> bool:
        """Thin segments, those thinned least and then the oldest first, until there is room."""
        try:
            spans = self._spans()
        except KVStoreError as error:
            shortage.error.explain(f"what is pinned cannot be told ({error})")
            return False
        segments = thinnable(self._segments.all(), self._limits.keep_tokens)
        left = [segment for segment in segments if segment.least_for != spans]
        wanted_bytes = shortage.excess_bytes + min(shortage.spare_bytes, _SPARE_BYTES)
        freed_bytes, no_room = 0, False
        while freed_bytes < wanted_bytes and left:
            segment = left.pop(0)
            before_bytes = self._disk_bytes(segment)
            try:
                # About what it takes, before anything is read; it is claimed once it is known.
                with self._space.claim(before_bytes // 2, aside=True):
                    pass
                changed = self._thin_segment(segment, spans)
            except (StoreFullError, NoRoomAsideError):
                no_room = True  # a smaller one may find room
                continue
            if not changed:
                segment.least_for = spans
                continue
            freed_bytes += before_bytes - self._disk_bytes(segment)
            left.append(segment)
            left.sort(key=thinned_least)
        if not freed_bytes:
            shortage.error.explain(
                "there is no room to write a thinner copy of a segment beside the old one"
                if no_room
                else "all that may be thinned is as thin as it gets"
            )
        return freed_bytes > 0

    def _thin_segment(self, segment: LogSegment, spans: Spans) -> bool:
        """Write a segment anew with fewer tokens; False when that would make it no smaller.

        Raises:
            StoreFullError, NoRoomAsideError: there is no room for it beside the old one.
            WriterFencedError: the session is not this writer's any more.
            OSError: the disk failed.
        """
        path = segment_path(self._folder, segment.number)
        try:
            with open(path, "rb") as file:
                fd = file.fileno()
                whole = self._read(fd, path, segment)
                blocks = choose_tokens(fd, whole, spans)
                if blocks is None:
                    return False
                with self._space.claim(file_bytes(blocks), aside=True):
                    rewrite(
                        self._folder,
                        fd,
                        segment.number,
                        whole,
                        blocks,
                        epoch=self._epoch,
                        io=self._io,
                        check_owned=self._check_owned,
                    )
        except (DamagedSegmentError, TornBlockError, BlockCorruptError) as error:
            # It stays as it is: damage must not be written anew as if it were not.
            self._warn("a damaged segment is not thinned", error, segment=path.name)
            return False
        self._announce_rewrite()
        token_count = sum(int(block.kept.sum()) for block in blocks)
        logger.info(
            "segment thinned",
            extra={
                "session": self._folder.name,
                "segment": path.name,
                "generation": whole.header.generation + 1,
                "token_count": token_count,
                "lost_token_count": segment.token_count - token_count,
            },
        )
        self._segments.thinned(segment, token_count)
        return True
