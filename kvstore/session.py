"""The record of a session: session.json, written whole or not at all, with its own checksum."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash

from kvstore.deletion import finish_deletion
from kvstore.diskio import DiskIO, make_folders
from kvstore.errors import (
    SessionExistsError,
    SessionNotFoundError,
    SessionRecordCorruptError,
)
from kvstore.paths import (
    RECORD_NAME,
    TOMBSTONE_NAME,
    check_session_id,
    session_folder,
    sessions_folder,
    trash_folder,
)
from kvstore.pins import Span

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What is known of a session beside its blocks. Change it with `dataclasses.replace`."""

    session_id: str
    state: Literal["live", "finished"] = "live"
    created_unix_s: float
    unit_period_s: float
    """Media time between the starts of two units."""
    identity: dict[str, str | int | float] = field(default_factory=dict)
    """What a resume must agree with."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The service's; JSON values, not read here."""
    totals: dict[str, int | float] = field(default_factory=dict)
    """Counts of a finished session."""
    pinned_spans: tuple[Span, ...] = ()
    """What is never thinned or dropped; as `kvstore.pins` makes them."""

    def __post_init__(self) -> None:
        check_session_id(self.session_id)
        if self.state not in ("live", "finished"):
            raise ValueError(f'state must be "live" or "finished", got {self.state!r}')


def _encode(record: SessionRecord) -> bytes:
    content = json.dumps(asdict(record), sort_keys=True, allow_nan=False)
    checksum = xxhash.xxh3_64_hexdigest(content.encode())
    return json.dumps({"record": content, "xxh3": checksum}, indent=1).encode()


def _decode(session_id: str, data: bytes) -> SessionRecord:
    try:
        outer = json.loads(data)
        content = outer["record"]
        if xxhash.xxh3_64_hexdigest(content.encode()) != outer["xxh3"]:
            raise SessionRecordCorruptError(session_id, "it does not match its checksum")
        fields = json.loads(content)
        spans = fields.pop("pinned_spans", [])  # absent from records of before there were any
        record = SessionRecord(**fields, pinned_spans=tuple((start, end) for start, end in spans))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SessionRecordCorruptError(session_id, str(error)) from error
    if record.session_id != session_id:
        reason = f"it is that of session {record.session_id!r}"
        raise SessionRecordCorruptError(session_id, reason)
    return record


def _write_file(io: DiskIO, path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        io.fsync(fd)


def create_session(root: Path, record: SessionRecord) -> None:
    """Create a session's folder with its record in it, both or neither.

    Raises:
        SessionExistsError: the name is taken.
    """
    io = DiskIO()
    folder = session_folder(root, record.session_id)
    if (folder / TOMBSTONE_NAME).exists():
        finish_deletion(root, record.session_id)
    make_folders(io, sessions_folder(root))
    make_folders(io, trash_folder(root))
    # Made aside and moved in; what a crash leaves in the trash is swept at the next start.
    made = trash_folder(root) / f"new-{record.session_id}-{uuid.uuid4().hex}"
    made.mkdir()
    _write_file(io, made / RECORD_NAME, _encode(record))
    io.fsync_folder(made)
    try:
        os.rename(made, folder)
    except OSError as error:
        (made / RECORD_NAME).unlink()
        made.rmdir()
        raise SessionExistsError(record.session_id) from error
    io.fsync_folder(sessions_folder(root))


def load_session(root: Path, session_id: str) -> SessionRecord:
    """Read a session's record.

    Raises:
        SessionNotFoundError: there is no such session, or it is being deleted.
        SessionRecordCorruptError: the record is damaged.
    """
    folder = session_folder(root, session_id)
    if (folder / TOMBSTONE_NAME).exists():
        raise SessionNotFoundError(session_id)
    try:
        data = (folder / RECORD_NAME).read_bytes()
    except FileNotFoundError as error:
        raise SessionNotFoundError(session_id) from error
    return _decode(session_id, data)


def update_session(root: Path, record: SessionRecord) -> None:
    """Replace a session's record. A crash leaves the old one or the new one.

    Raises:
        SessionNotFoundError: there is no such session, or it is being deleted.
    """
    io = DiskIO()
    folder = session_folder(root, record.session_id)
    path = folder / RECORD_NAME
    if not path.exists() or (folder / TOMBSTONE_NAME).exists():
        raise SessionNotFoundError(record.session_id)
    aside = folder / f"{RECORD_NAME}.{uuid.uuid4().hex}.tmp"
    _write_file(io, aside, _encode(record))
    os.rename(aside, path)
    io.fsync_folder(folder)


def change_session(
    root: Path, session_id: str, change: Callable[[SessionRecord], SessionRecord]
) -> SessionRecord:
    """Replace a session's record by what `change` makes of it, and return that.

    No change of another caller that does the same is lost, of other processes either. A crash
    leaves the old record or the new one.

    Raises:
        SessionNotFoundError: there is no such session, or it is being deleted.
        SessionRecordCorruptError: the record is damaged.
        Exception: of `change`; nothing is changed then.
    """
    with record_held(root, session_id):
        record = load_session(root, session_id)
        changed = change(record)
        if changed != record:
            update_session(root, changed)
    return changed


@contextmanager
def record_held(root: Path, session_id: str) -> Iterator[None]:
    """Keep a session's record from being changed inside the `with`, by other processes too.

    The folder itself is locked: that needs no other file. Not to be nested.

    Raises (on entering):
        SessionNotFoundError: there is no such session.
    """
    try:
        fd = os.open(session_folder(root, session_id), os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise SessionNotFoundError(session_id) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def session_ids(root: Path) -> list[str]:
    """The names of all sessions that have a record and are not being deleted, ascending."""
    try:
        folders = sorted(sessions_folder(root).iterdir())
    except FileNotFoundError:
        return []
    return [
        folder.name
        for folder in folders
        if (folder / RECORD_NAME).exists() and not (folder / TOMBSTONE_NAME).exists()
    ]


def list_sessions(root: Path) -> list[SessionRecord]:
    """All sessions, by name. One with a damaged record is left out and logged as an error.

    `load_session` of that one raises, and `verify_store` reports it.
    """
    records = []
    for session_id in session_ids(root):
        try:
            records.append(load_session(root, session_id))
        except SessionNotFoundError:
            continue  # deleted since the folder was listed
        except SessionRecordCorruptError as error:
            logger.error(
                "session record is damaged",
                extra={"session": session_id, "reason": error.reason},
            )
    return records
