"""The state of a stream's reduction on disk, for the unit that a restart goes on after.

Two files take turns, each whole with a checksum and the count of units that it belongs to. One is
written before the block that makes so many units durable, over the older one: whichever of the
two counts a crash leaves durable, its state is there. A state that is not there costs no answer:
the next unit is kept whole. It is of the size of a unit's embeddings, too large for every block.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import xxhash
from safetensors import SafetensorError

from kvstore.paths import REDUCTION_NAMES, session_folder
from svc.engine.reduction.base import ReductionState

logger = logging.getLogger(__name__)

_HEAD = struct.Struct("<8sQQQ")  # magic, units, bytes of the state, XXH3-64 of those
_MAGIC = b"LBREDUCE"


class ReductionFile:
    """The states of one session. One thread owns it."""

    def __init__(self, root: Path, session_id: str) -> None:
        folder = session_folder(root, session_id)
        self._paths = [folder / name for name in REDUCTION_NAMES]
        self._unit_counts: list[int | None] = [None, None]
        """Of the states that the files hold, as far as they were read or written here."""

    def read(self, unit_count: int) -> ReductionState | None:
        """Return the state after `unit_count` units, or None where none such is whole."""
        state = None
        for turn, path in enumerate(self._paths):
            found = _read(path)
            if found is None:
                continue
            self._unit_counts[turn], data = found
            if found[0] == unit_count:
                with suppress(SafetensorError, KeyError):  # of another version
                    state = ReductionState.from_bytes(data)
        return state

    def write(
        self,
        unit_count: int,
        state: ReductionState,
        *,
        durable_unit_count: int,
        room: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        """Make the state after `unit_count` units durable; that of the durable ones stays too.

        A state that remembers nothing is not written.

        Args:
            durable_unit_count: units whose state is kept, should there be a crash.
            room: asked for what the files grow by.

        Raises:
            OSError: there is no room, or the disk has failed.
            StoreFullError: of `room`.
        """
        if state.reference is None:
            return
        data = state.to_bytes()
        turn = 1 if self._unit_counts[0] == durable_unit_count else 0
        path = self._paths[turn]
        head = _HEAD.pack(_MAGIC, unit_count, len(data), xxhash.xxh3_64_intdigest(data))
        held_bytes = path.stat().st_size if path.exists() else 0
        with room(max(0, len(head) + len(data) - held_bytes)):
            self._unit_counts[turn] = None
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(head)
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
        self._unit_counts[turn] = unit_count


def _read(path: Path) -> tuple[int, bytes] | None:
    """Return the count of units and the state that a file holds, if it is whole."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("a reduction's state cannot be read", extra={"reason": str(error)})
        return None
    if len(content) < _HEAD.size:
        return None
    magic, unit_count, length, checksum = _HEAD.unpack_from(content)
    data = content[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(data) != length or xxhash.xxh3_64_intdigest(data) != checksum:
        return None
    return unit_count, data
