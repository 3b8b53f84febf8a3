"""How much a store holds, session by session, from headers and file sizes alone.

Opens nothing for writing and reads no keys and values: right while a service runs, and quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvstore.control import ControlPage, WriterState
from kvstore.errors import KVStoreError, SessionNotFoundError
from kvstore.paths import (
    INDEX_NAME,
    RECORD_NAME,
    session_folder,
    session_hash,
    stored_session_names,
)
from kvstore.quarantine import quarantined
from kvstore.reader import SessionReader
from kvstore.session import load_session

_DISK_BLOCK_BYTES = 512  # what st_blocks counts, whatever the file system's own blocks are
_HOUR_S = 3600.0

WriterMark = Literal["none", "open", "closed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStat:
    """What a session holds. None: damage keeps it from being known."""

    session_id: str
    state: Literal["live", "finished"] | None
    writer: WriterMark
    """What the last writer left in the CTL page; open also when it was killed."""
    visible_unit_count: int | None
    """Units of the session's history, the dropped ones included."""
    durable_unit_count: int | None
    """Of those, the ones on the disk (or dropped from it)."""
    dropped_unit_count: int | None
    """Of those, the oldest, which were dropped on purpose."""
    thinned_unit_count: int | None
    """Of those, the ones that lost tokens since they were stored, to make room."""
    thinnest_generation: int | None
    """How often the segment that was thinned most was thinned."""
    token_count: int | None
    block_count: int | None
    segment_count: int | None
    first_pts_s: float | None
    """Of the first unit that is left."""
    last_pts_s: float | None
    logical_bytes: int | None
    """Keys and values of the durable units as readers get them."""
    physical_bytes: int
    """What all files of the session take on the disk, space reserved in advance included."""
    index_bytes: int
    """Of those, the key index."""
    encoding: str | None
    """How keys and values lie in the blocks; None also before the first block."""
    damaged_slice_count: int
    """Slices that answers have met as damaged, and do without."""
    damage: tuple[str, ...]
    """What is known: from opening the session, and from answers. Keys and values were not read:
    `verify_store` does."""

    @property
    def covered_s(self) -> float:
        """Stream time from the first frame to the last, gaps included."""
        if self.first_pts_s is None or self.last_pts_s is None:
            return 0.0
        return self.last_pts_s - self.first_pts_s

    @property
    def bytes_per_stream_hour(self) -> float | None:
        """Bytes on the disk for an hour of stream at the rate so far; None without a length."""
        return self.physical_bytes / self.covered_s * _HOUR_S if self.covered_s > 0 else None


def stat_store(root: Path) -> list[SessionStat]:
    """Look at every session of a store, by name."""
    stats = []
    for session_id in stored_session_names(root):
        try:
            stats.append(stat_session(root, session_id))
        except SessionNotFoundError:
            continue  # deleted since the folder was listed
    return stats


def stat_session(root: Path, session_id: str) -> SessionStat:
    """Look at one session.

    Raises:
        SessionNotFoundError: there is no such session, or it is being deleted.
    """
    damage = []
    state = None
    if (session_folder(root, session_id) / RECORD_NAME).exists():
        try:
            state = load_session(root, session_id).state
        except SessionNotFoundError:
            raise
        except KVStoreError as error:
            damage.append(str(error))
    physical_bytes, index_bytes = _disk_bytes(root, session_id)
    try:
        writer = _writer_mark(root, session_id)
    except KVStoreError as error:
        writer = "none"
        damage.append(str(error))
    known = quarantined(root, session_id)
    if known:
        units = len({each.unit_index for each in known})
        damage.append(f"{session_id}: {len(known)} slices of {units} units, met by answers")
    try:
        reader = SessionReader.open(root, session_id)
    except SessionNotFoundError:
        raise
    except KVStoreError as error:
        if str(error) not in damage:
            damage.append(str(error))
        return SessionStat(
            session_id=session_id,
            state=state,
            writer=writer,
            visible_unit_count=None,
            durable_unit_count=None,
            dropped_unit_count=None,
            thinned_unit_count=None,
            thinnest_generation=None,
            token_count=None,
            block_count=None,
            segment_count=None,
            first_pts_s=None,
            last_pts_s=None,
            logical_bytes=None,
            physical_bytes=physical_bytes,
            index_bytes=index_bytes,
            encoding=None,
            damaged_slice_count=len(known),
            damage=tuple(damage),
        )
    try:
        snapshot, places = reader.snapshot(), reader.places
        geometry = reader.geometry
    finally:
        reader.close()
    first, left = snapshot.first_unit, snapshot.unit_count > snapshot.first_unit
    durable_tokens = sum(place.header.token_count for place in places)
    kv_bytes = 2 * geometry.layer_count * geometry.token_bytes if geometry else 0
    return SessionStat(
        session_id=session_id,
        state=state,
        writer=writer,
        visible_unit_count=snapshot.unit_count,
        durable_unit_count=snapshot.durable_unit_count,
        dropped_unit_count=first,
        thinned_unit_count=int(snapshot.coarsened[first:].sum()),
        thinnest_generation=max((place.header.generation for place in places), default=0),
        token_count=int(snapshot.token_counts[first:].sum()),
        block_count=len(places),
        segment_count=len({place.segment_number for place in places}),
        first_pts_s=float(snapshot.first_pts_s[first]) if left else None,
        last_pts_s=float(snapshot.last_pts_s[-1]) if left else None,
        logical_bytes=durable_tokens * kv_bytes,
        physical_bytes=physical_bytes,
        index_bytes=index_bytes,
        encoding=places[0].layout.encoding if places else None,
        damaged_slice_count=len(known),
        damage=tuple(damage),
    )


def _writer_mark(root: Path, session_id: str) -> WriterMark:
    page = ControlPage.open(session_folder(root, session_id), session_hash(session_id))
    if page is None:
        return "none"
    try:
        state = page.state().writer_state
    finally:
        page.close()
    marks: dict[int, WriterMark] = {
        WriterState.OPEN: "open",
        WriterState.CLOSED: "closed",
        WriterState.FAILED: "failed",
    }
    return marks.get(state, "none")


def _disk_bytes(root: Path, session_id: str) -> tuple[int, int]:
    """Bytes on the disk of all files in the session's folder, and of its index."""
    total = index = 0
    try:
        paths = list(session_folder(root, session_id).iterdir())
    except FileNotFoundError as error:
        raise SessionNotFoundError(session_id) from error
    for path in paths:
        try:
            taken = path.stat().st_blocks * _DISK_BLOCK_BYTES
        except FileNotFoundError:
            continue  # a temporary file that was moved into place meanwhile
        total += taken
        index += taken if path.name == INDEX_NAME else 0
    return total, index
