"""Sessions that nobody pushes to: what there is of them, and what of it is to go. Calls block."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from kvstore.diskuse import used_bytes
from kvstore.errors import KVStoreError, SessionNotFoundError
from kvstore.glance import glance
from kvstore.paths import session_folder
from kvstore.retention import aged, counts_to_free, droppable, expired_count, pin_check
from kvstore.session import session_ids
from kvstore.trimming import StoredSegment, drop_front, stored_segments
from svc.config import Settings
from svc.ingest.keeping import RulesInForce
from svc.ingest.pinning import spans_to_keep_of
from svc.ingest.session_records import Session
from svc.ingest.sessions import Sessions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleSession:
    """A session that no push of this process has open."""

    session: Session
    rules: RulesInForce
    durable_unit_count: int
    first_unit: int

    @property
    def session_id(self) -> str:
        """Its name."""
        return self.session.session_id

    @property
    def mark(self) -> str:
        """Another once a unit has come, or the session is another one under its name."""
        return f"{self.session.created_unix_s} {self.durable_unit_count}"

    @property
    def keep_tokens(self) -> int:
        """What must be left of it: of the newest units so many, where another one may come."""
        return self.session.settings.keep_tokens if self.session.state == "live" else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a session is to let go of."""

    before_segment: int
    """The number of the first segment that stays."""
    whole: bool = False
    """All of it, and the session with it."""


class IdleSessions:
    """The idle sessions of a store. One thread at a time."""

    def __init__(
        self, settings: Settings, sessions: Sessions, *, is_pushed: Callable[[str], bool]
    ) -> None:
        """`settings` hold for sessions that say nothing themselves."""
        self._settings = settings
        self._root = settings.data_dir
        self._sessions = sessions
        self._is_pushed = is_pushed
        self._told: dict[str, str] = {}
        """Per session why nothing went of it last."""
        self._read: dict[str, tuple[tuple[str, int], list[StoredSegment]]] = {}
        """Per session what was read of its segments, and of which state of it."""

    def look(self) -> list[IdleSession]:
        """Returns the sessions that nobody pushes to here and that hold something.

        Those whose pages cannot say for certain what they hold are left out.
        """
        names = set(session_ids(self._root))
        found = list(self._found(sorted(names)))
        self._told = {name: why for name, why in self._told.items() if name in names}
        self._read = {name: read for name, read in self._read.items() if name in names}
        return found

    def still(self, idle: IdleSession) -> bool:
        """Whether a session is as it was when it was looked at."""
        now = self._idle(self._sessions.get(idle.session_id))
        return now is not None and now.mark == idle.mark

    def due_for_age(self, idle: IdleSession, idle_s: float) -> Due | None:
        """Returns what of a session is too old, if something is that may go.

        Raises:
            KVStoreError, OSError: it cannot be looked at.
        """
        segments = self._segments(idle)
        age = {
            "retain_s": idle.rules.retain_s,
            "newest_pts_s": segments[-1].last_pts_s,
            "now_unix_s": time.time(),
            "idle_s": idle_s,
        }
        count = expired_count(segments, **age)
        if count == 0:
            return None
        is_pinned = self._pin_check(idle)
        over = idle.session.state == "finished" and count == len(segments)
        if over and not any(is_pinned(segment) for segment in segments):
            return Due(before_segment=segments[-1].number + 1, whole=True)
        may_go = aged(segments, keep_tokens=idle.keep_tokens, is_pinned=is_pinned, **age)
        return Due(before_segment=segments[len(may_go)].number) if may_go else None

    def due_for_budget(self, idle: IdleSession) -> Due | None:
        """Returns what of a session whose rule is drop_oldest is beyond its own budget.

        A push keeps to the budget that it was opened with; this is for one that was made smaller.

        Raises:
            KVStoreError, OSError: it cannot be looked at.
        """
        budget = idle.rules.budget
        used = used_bytes(session_folder(self._root, idle.session_id))
        if budget.on_full != "drop_oldest" or not 0 < budget.session_bytes < used:
            return None
        excess_bytes = used - int(budget.session_bytes * budget.low_fraction)
        (count,) = counts_to_free(
            [self._droppable(idle)], excess_bytes, lambda segment: segment.disk_bytes
        )
        return Due(before_segment=self._segments(idle)[count].number) if count else None

    def due_for_room(self, found: Sequence[IdleSession]) -> list[tuple[IdleSession, Due]]:
        """Returns what sessions whose rule is drop_oldest are to let go of for the store's budget.

        Those segments first that were written first. It begins before those who push meet the
        line at which they would drop of their own, or be refused.
        """
        low, high = self._settings.budget_low_fraction, self._settings.budget_high_fraction
        budget_bytes, used = self._settings.disk_budget_bytes, used_bytes(self._root)
        if not budget_bytes or used <= budget_bytes * (low + high) / 2:
            return []
        excess_bytes = used - int(budget_bytes * low)
        givers = [idle for idle in found if idle.rules.budget.on_full == "drop_oldest"]
        queues = [self._droppable(idle) for idle in givers]
        counts = counts_to_free(queues, excess_bytes, lambda segment: segment.disk_bytes)
        return [
            (idle, Due(before_segment=self._segments(idle)[count].number))
            for idle, count in zip(givers, counts, strict=True)
            if count
        ]

    def is_unpinned(self, idle: IdleSession) -> bool:
        """Whether nothing that a session holds is pinned now.

        Raises:
            KVStoreError, OSError: it cannot be looked at.
        """
        is_pinned = self._pin_check(idle)
        return not any(is_pinned(segment) for segment in self._segments(idle))

    def drop(self, idle: IdleSession, due: Due, may_commit: Callable[[], bool]) -> None:
        """Lets go of the front of a session that is ours.

        Raises:
            KVStoreError, OSError: it has a writer, is damaged, or the disk failed.
        """
        count = drop_front(
            self._root,
            idle.session_id,
            before_segment=due.before_segment,
            keep_tokens=idle.keep_tokens,
            pinned=partial(spans_to_keep_of, self._root, idle.session_id),
            may_commit=may_commit,
        )
        logger.info(
            "idle session let go of its oldest",
            extra={"session": idle.session_id, "segment_count": count},
        )

    def tell_left_alone(self, session_id: str, error: Exception) -> None:
        """Logs why nothing goes of a session for now, when it is another reason than before."""
        reason = str(error)
        if self._told.get(session_id) != reason:
            self._told[session_id] = reason
            logger.info("idle session left alone", extra={"session": session_id, "reason": reason})

    def _found(self, session_ids: Sequence[str]) -> Iterator[IdleSession]:
        for session_id in session_ids:
            try:
                idle = self._idle(self._sessions.get(session_id))
            except SessionNotFoundError:
                continue  # deleted since the ids were listed
            except (KVStoreError, OSError) as error:
                self.tell_left_alone(session_id, error)
                continue
            if idle is not None:
                yield idle

    def _idle(self, session: Session) -> IdleSession | None:
        if self._is_pushed(session.session_id):
            return None
        seen = glance(self._root, session.session_id)
        if seen is None or seen.durable_unit_count <= seen.first_unit:
            return None
        return IdleSession(
            session=session,
            rules=session.keeping.in_force(self._settings),
            durable_unit_count=seen.durable_unit_count,
            first_unit=seen.first_unit,
        )

    def _segments(self, idle: IdleSession) -> list[StoredSegment]:
        """Returns a session's segments; they are read again once something has changed."""
        state = (idle.mark, idle.first_unit)
        read = self._read.get(idle.session_id)
        if read is None or read[0] != state:
            read = state, stored_segments(self._root, idle.session_id)
            if not read[1]:
                raise SessionNotFoundError(idle.session_id)  # made anew since
            self._read[idle.session_id] = read
        return read[1]

    def _droppable(self, idle: IdleSession) -> Iterator[StoredSegment]:
        """Yields the segments that may go; none more of a session that cannot be looked at."""
        try:
            yield from droppable(
                self._segments(idle),
                keep_tokens=idle.keep_tokens,
                is_pinned=self._pin_check(idle),
            )
        except SessionNotFoundError:
            pass  # deleted meanwhile
        except (KVStoreError, OSError) as error:
            self.tell_left_alone(idle.session_id, error)

    def _pin_check(self, idle: IdleSession) -> Callable[[StoredSegment], bool]:
        """Returns what tells whether something of a segment is pinned now, or may be."""
        return pin_check(
            session_folder(self._root, idle.session_id),
            partial(spans_to_keep_of, self._root, idle.session_id),
            on_damage=lambda _, error: self.tell_left_alone(idle.session_id, error),
        )
