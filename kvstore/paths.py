"""Names of sessions and of the files in a session's folder."""

from __future__ import annotations

import re
from pathlib import Path

import xxhash

from kvstore.errors import InvalidSessionIdError

CONTROL_NAME = "CTL"
INDEX_NAME = "index.rows"
"""Written and read by `retrieval`, derived from the blocks; here because it lies beside them."""
LOCK_NAME = "LOCK"
REDUCTION_NAMES = ("reduction.0", "reduction.1")
"""Written and read by the engine, in turns; here because they lie beside the blocks."""
RECORD_NAME = "session.json"
TOMBSTONE_NAME = "TOMBSTONE"

_SESSION_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SEGMENT = re.compile(r"seg-(\d{6,})\.kvs")


def check_session_id(session_id: str) -> None:
    """Raise InvalidSessionIdError unless the text can name a session."""
    if _SESSION_ID.fullmatch(session_id) is None:
        raise InvalidSessionIdError(session_id)


def session_hash(session_id: str) -> int:
    """The 64-bit hash that ties files and blocks to their session."""
    return xxhash.xxh3_64_intdigest(session_id.encode())


def sessions_folder(root: Path) -> Path:
    """The folder that holds one folder per session."""
    return root / "sessions"


def trash_folder(root: Path) -> Path:
    """Where sessions lie between the start and the end of their deletion."""
    return root / "trash"


def session_folder(root: Path, session_id: str) -> Path:
    """The folder of a session; the session need not exist."""
    check_session_id(session_id)
    return sessions_folder(root) / session_id


def still_there(folder: Path) -> bool:
    """Whether a session's folder is there and not being deleted."""
    return folder.is_dir() and not (folder / TOMBSTONE_NAME).exists()


def segment_path(folder: Path, number: int) -> Path:
    """The path of a session's segment file."""
    return folder / f"seg-{number:06d}.kvs"


def segment_numbers(folder: Path) -> list[int]:
    """The numbers of the segment files in a session's folder, ascending.

    Raises:
        FileNotFoundError: the folder is gone.
    """
    matches = (_SEGMENT.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match.group(1)) for match in matches if match is not None)


def stored_session_names(root: Path) -> list[str]:
    """The names of all session folders that are not being deleted, ascending, with no record too.

    A folder whose name cannot be that of a session is none.
    """
    try:
        folders = sorted(sessions_folder(root).iterdir())
    except FileNotFoundError:
        return []
    return [
        folder.name
        for folder in folders
        if _SESSION_ID.fullmatch(folder.name)
        and folder.is_dir()
        and not (folder / TOMBSTONE_NAME).exists()
    ]
