"""Which slices on disk are known to be damaged: remembered, so that no question reads one twice.

Readers write nothing into a session's folder; what the answering process found lies beside the
sessions, in `quarantine/<session>.log`, and belongs to it alone. The file is append-only, one
checksummed line an event, and may be deleted at any time: the damage is then found again. A slice
is read again once its segment file has changed (repaired in place, put back from a copy, touched)
or its block was written anew.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

from kvstore.diskio import DiskIO, make_folders
from kvstore.errors import SliceCorruptError
from kvstore.paths import check_session_id, session_folder

logger = logging.getLogger(__name__)

_SUFFIX = ".log"
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedSlice:
    """One unit's keys and values of one layer that could not be read."""

    block_hash: int
    """Of the block's header: a block that was written anew has another one."""
    block_index: int
    unit_index: int
    layer_index: int
    unreadable: bool
    """Whether the disk refused; otherwise the bytes were not those that were written."""
    inode: int
    """Of the segment file, before the read that failed; 0: it was missing."""
    changed_ns: int
    """When that file was changed last, by its own clock (ctime)."""
    found_unix_s: float

    @property
    def key(self) -> tuple[int, int, int]:
        """What is damaged."""
        return self.block_hash, self.unit_index, self.layer_index


def quarantine_path(root: Path, session_id: str) -> Path:
    """The file that remembers the damage of a session; it is there once there was some."""
    check_session_id(session_id)
    return root / "quarantine" / (session_id + _SUFFIX)


def quarantined(root: Path, session_id: str) -> list[DamagedSlice]:
    """What is remembered as damaged in a session, by unit and layer.

    Raises:
        OSError: the file is there and cannot be read.
    """
    found = _parse(quarantine_path(root, session_id)).values()
    return sorted(found, key=lambda each: (each.unit_index, each.layer_index))


def sweep_quarantine(root: Path) -> None:
    """Forget the damage of sessions that are gone."""
    for path in (root / "quarantine").glob("*" + _SUFFIX):
        if not session_folder(root, path.name.removesuffix(_SUFFIX)).is_dir():
            path.unlink(missing_ok=True)
            logger.info("quarantine of a deleted session removed", extra={"path": str(path)})


class Quarantine:
    """The damaged slices of one session. Safe to use from many threads, and processes."""

    def __init__(self, root: Path, session_id: str, io: DiskIO | None = None) -> None:
        """Read what is remembered."""
        self._path = quarantine_path(root, session_id)
        self._session_id = session_id
        self._io = io or DiskIO()
        self._lock = threading.Lock()
        self._slices: dict[tuple[int, int, int], DamagedSlice] = {}
        try:
            self._slices = _parse(self._path)
        except OSError as error:  # what it said is found again; no answer fails for it
            logger.warning(
                "the quarantine cannot be read",
                extra={"path": str(self._path), "cause": str(error)},
            )

    def __len__(self) -> int:
        return len(self._slices)

    def find(self, block_hash: int, unit_index: int, layer_index: int) -> DamagedSlice | None:
        """What is remembered of a slice."""
        return self._slices.get((block_hash, unit_index, layer_index))

    def add(self, found: Iterable[DamagedSlice]) -> None:
        """Remember slices durably, and log those that are new."""
        with self._lock:
            events = list(found)
            for each in events:
                if each.key not in self._slices:
                    logger.error(
                        "stored keys and values are damaged on this disk",
                        extra={
                            "session": self._session_id,
                            "block": each.block_index,
                            "unit": each.unit_index,
                            "layer": each.layer_index,
                            "reason": "unreadable" if each.unreadable else "checksum",
                        },
                    )
                self._slices[each.key] = each
            self._append([("damaged", each) for each in events])

    def lift(self, repaired: DamagedSlice) -> None:
        """Forget a slice that could be read again."""
        with self._lock:
            if self._slices.pop(repaired.key, None) is None:
                return
            self._append([("repaired", repaired)])
        logger.info(
            "a damaged unit is whole again",
            extra={
                "session": self._session_id,
                "block": repaired.block_index,
                "unit": repaired.unit_index,
                "layer": repaired.layer_index,
            },
        )

    def _append(self, events: list[tuple[str, DamagedSlice]]) -> None:
        if not events:
            return
        # The empty line ends what a crash left of a line before.
        data = b"\n" + b"".join(_line(state, each) for state, each in events)
        try:
            make_folders(self._io, self._path.parent)
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(fd, data)
                self._io.fdatasync(fd)
            finally:
                os.close(fd)
            self._io.fsync_folder(self._path.parent)
        except OSError as error:
            logger.warning(
                "damage could not be remembered beyond this process",
                extra={"path": str(self._path), "cause": str(error)},
            )


class FileState(NamedTuple):
    """How a segment file is: changed, put back or gone, it has another."""

    inode: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """How it is now; zeros: it is not there."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return cls(0, 0)
        return cls(found.st_ino, found.st_ctime_ns)


def damaged_now(error: SliceCorruptError, *, block_hash: int, file: FileState) -> DamagedSlice:
    """A slice on disk that was found damaged; `file` is how its file was before it was read."""
    if error.block_index is None:
        raise ValueError(f"not on disk: {error}")
    return DamagedSlice(
        block_hash=block_hash,
        block_index=error.block_index,
        unit_index=error.unit_index,
        layer_index=error.layer_index,
        unreadable=error.unreadable,
        inode=file.inode,
        changed_ns=file.changed_ns,
        found_unix_s=time.time(),
    )


def _line(state: str, each: DamagedSlice) -> bytes:
    content = json.dumps({"state": state, **asdict(each)})
    return f"{xxhash.xxh3_64_hexdigest(content.encode())} {content}\n".encode()


def _parse(path: Path) -> dict[tuple[int, int, int], DamagedSlice]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    slices: dict[tuple[int, int, int], DamagedSlice] = {}
    for line in data.splitlines():
        digest, content = line[:_HASH_DIGITS], line[_HASH_DIGITS + 1 :]
        if not line:
            continue
        if xxhash.xxh3_64_hexdigest(content).encode() != digest:
            # What it said is found again at the next question that reads the slice.
            logger.warning("a line of the quarantine is torn", extra={"path": str(path)})
            continue
        fields = json.loads(content)
        state = fields.pop("state")
        each = DamagedSlice(**fields)
        if state == "repaired":
            slices.pop(each.key, None)
        else:
            slices[each.key] = each
    return slices
