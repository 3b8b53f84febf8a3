"""Every error kvstore raises on purpose: one class per decision the caller can make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class KVStoreError(Exception):
    """Base of every error that kvstore raises on purpose."""


class InvalidSessionIdError(KVStoreError, ValueError):
    """The text cannot name a session."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            "session id must be 1 to 63 of a-z, 0-9 and '-', not starting or ending with '-', "
            f"got {session_id!r}"
        )
        self.session_id = session_id


class SessionNotFoundError(KVStoreError):
    """There is no such session, or it is being deleted."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} does not exist")
        self.session_id = session_id


class SessionExistsError(KVStoreError):
    """A session of this name is there already."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} exists already")
        self.session_id = session_id


class SessionLockedError(KVStoreError):
    """Another writer holds the session."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} has another writer")
        self.session_id = session_id


class SessionRecordCorruptError(KVStoreError):
    """session.json is damaged."""

    def __init__(self, session_id: str, reason: str) -> None:
        super().__init__(f"session.json of {session_id!r} is damaged: {reason}")
        self.session_id = session_id
        self.reason = reason


class InvalidSpanError(KVStoreError, ValueError):
    """Two times that are no span of stream time."""

    def __init__(self, start_s: float, end_s: float, rule: str) -> None:
        super().__init__(f"[{start_s}, {end_s}) is no span of stream time: {rule}")
        self.start_s = start_s
        self.end_s = end_s
        self.rule = rule


class TooManySpansError(KVStoreError):
    """More spans would be pinned than are allowed; nothing was changed."""

    def __init__(self, span_count: int, max_span_count: int) -> None:
        super().__init__(f"{span_count} spans would be pinned, {max_span_count} are allowed")
        self.span_count = span_count
        self.max_span_count = max_span_count


class FormatVersionError(KVStoreError):
    """The file was written by another version of the format."""

    def __init__(self, path: Path, version: int, supported: int) -> None:
        super().__init__(f"{path} has format version {version}, this build reads {supported}")
        self.path = path
        self.version = version
        self.supported = supported


class GeometryMismatchError(KVStoreError):
    """The session holds keys and values of another shape or encoding."""

    def __init__(self, session_id: str, stored: object, given: object) -> None:
        super().__init__(f"session {session_id!r} holds {stored}, got {given}")
        self.session_id = session_id
        self.stored = stored
        self.given = given


class BlockCorruptError(KVStoreError):
    """A block that was acknowledged is damaged or missing."""

    def __init__(self, session_id: str, block_index: int, reason: str) -> None:
        super().__init__(f"block {block_index} of session {session_id!r} is damaged: {reason}")
        self.session_id = session_id
        self.block_index = block_index
        self.reason = reason


class SliceCorruptError(KVStoreError):
    """Keys and values of one unit in one layer differ from those written, or cannot be read."""

    def __init__(
        self,
        session_id: str,
        block_index: int | None,
        unit_index: int,
        layer_index: int,
        *,
        unreadable: bool = False,
    ) -> None:
        place = "the hot tail" if block_index is None else f"block {block_index}"
        fault = "cannot be read" if unreadable else "does not match its checksum"
        super().__init__(
            f"unit {unit_index}, layer {layer_index} of session {session_id!r} in {place} {fault}"
        )
        self.session_id = session_id
        self.block_index = block_index
        self.unit_index = unit_index
        self.layer_index = layer_index
        self.unreadable = unreadable
        """Whether the disk refused; otherwise it gave other bytes than were written."""
        self._others: tuple[SliceCorruptError, ...] = ()

    @property
    def damaged(self) -> tuple[SliceCorruptError, ...]:
        """Everything that one read could not give; this is the first."""
        # Not kept: an error that holds itself keeps its traceback, and what is open there, alive.
        return (self, *self._others)


def joined(errors: Sequence[SliceCorruptError]) -> SliceCorruptError:
    """The first of several errors of one read, holding all of them."""
    errors[0]._others = tuple(errors[1:])
    return errors[0]


class NotFiniteError(KVStoreError, ValueError):
    """Keys or values of a unit have no range that codes could divide: NaN or infinity is in it."""

    def __init__(
        self, session_id: str, unit_index: int, layer_index: int, encoding: str, reason: str
    ) -> None:
        super().__init__(
            f"unit {unit_index}, layer {layer_index} of session {session_id!r} cannot be stored as "
            f"{encoding}: {reason}"
        )
        self.session_id = session_id
        self.unit_index = unit_index
        self.layer_index = layer_index


class HotTailCorruptError(KVStoreError):
    """A visible unit cannot be read from shared memory; it can be once it is durable."""

    def __init__(self, session_id: str, unit_index: int) -> None:
        super().__init__(
            f"the hot tail's record of unit {unit_index} of session {session_id!r} is damaged"
        )
        self.session_id = session_id
        self.unit_index = unit_index


class ReadGivenUpError(KVStoreError):
    """The read was given up before its end: nobody waits for it, or its deadline passed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the read was given up: {reason}")
        self.reason = reason


class SnapshotExpiredError(KVStoreError):
    """The unit was visible but never durable, and its writer is gone: take a new snapshot."""

    def __init__(self, session_id: str, unit_index: int, epoch: int) -> None:
        super().__init__(
            f"unit {unit_index} of session {session_id!r} as of epoch {epoch} is gone: "
            "its writer ended before the unit was durable"
        )
        self.session_id = session_id
        self.unit_index = unit_index
        self.epoch = epoch


class UnitDroppedError(KVStoreError):
    """The unit was dropped on purpose, to make room or for its age: it will not come back."""

    def __init__(self, session_id: str, unit_index: int, first_unit: int) -> None:
        super().__init__(
            f"unit {unit_index} of session {session_id!r} was dropped: "
            f"the session remembers from unit {first_unit} on"
        )
        self.session_id = session_id
        self.unit_index = unit_index
        self.first_unit = first_unit


class UnitsThinnedError(KVStoreError):
    """Units lost tokens since the snapshot was taken: it is to go on with `Snapshot.thinned`."""

    def __init__(
        self, session_id: str, unit_indices: tuple[int, ...], token_counts: tuple[int, ...]
    ) -> None:
        super().__init__(
            f"units of session {session_id!r} were thinned since the snapshot was taken"
        )
        self.session_id = session_id
        self.unit_indices = unit_indices
        """All units of the snapshot that have another count than it says, ascending."""
        self.token_counts = token_counts
        """What they have now, at least 1 each."""


class StoreFullError(KVStoreError):
    """There is no room under the disk's reserve; nothing acknowledged is lost."""

    def __init__(self, path: Path, needed_bytes: int, free_bytes: int, reserve_bytes: int) -> None:
        super().__init__(
            f"{path} needs {needed_bytes} bytes, {free_bytes} are free "
            f"of which {reserve_bytes} are reserved"
        )
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.reserve_bytes = reserve_bytes

    def explain(self, reason: str) -> None:
        """Say why nothing could go to make room."""
        self.args = (f"{self.args[0]}; {reason}",)


class BudgetExceededError(StoreFullError):
    """A budget in bytes of disk does not allow it; nothing acknowledged is lost."""

    def __init__(
        self,
        path: Path,
        budget: str,
        budget_bytes: int,
        line_bytes: int,
        used_bytes: int,
        needed_bytes: int,
    ) -> None:
        """`line_bytes`: up to where the budget may be filled by what was asked for."""
        super().__init__(
            path, needed_bytes, max(budget_bytes - used_bytes, 0), budget_bytes - line_bytes
        )
        text = (
            f"{path} takes {used_bytes} bytes and {needed_bytes} more are asked, {budget} is "
            f"{budget_bytes}, of which this may fill {line_bytes}"
        )
        self.args = (text,)
        self.budget = budget
        self.budget_bytes = budget_bytes
        self.used_bytes = used_bytes


class UnitTooLargeError(KVStoreError):
    """One unit does not fit in the hot tail."""

    def __init__(self, session_id: str, unit_bytes: int, hot_tail_bytes: int) -> None:
        super().__init__(
            f"a unit of {unit_bytes} bytes does not fit in the hot tail of "
            f"{hot_tail_bytes} bytes of session {session_id!r}; raise hot_tail_bytes"
        )
        self.session_id = session_id
        self.unit_bytes = unit_bytes
        self.hot_tail_bytes = hot_tail_bytes


class WriterFailedError(KVStoreError):
    """The writer met an I/O error and is dead: close it and open a new one, which recovers."""

    def __init__(self, session_id: str, cause: str) -> None:
        super().__init__(
            f"the writer of session {session_id!r} is dead ({cause}); close and reopen it"
        )
        self.session_id = session_id
        self.cause = cause


class WriterFencedError(KVStoreError):
    """The writer may not write any more: another process may be writing the session by now."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"the writer of session {session_id!r} may not write any more; open a new one"
        )
        self.session_id = session_id


class WriterClosedError(KVStoreError):
    """The writer was closed by its owner."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"the writer of session {session_id!r} is closed")
        self.session_id = session_id
