"""Finding key indexes that questions cannot use, and making them anew from the stored keys.

Only a writer makes an index whole, and a finished session gets no other: so whoever starts the
service looks all sessions over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from kvstore.arena import Arena
from kvstore.errors import SessionNotFoundError
from kvstore.glance import glance, has_blocks
from kvstore.limits import BlockLimits
from kvstore.pins import PinsNow
from kvstore.reader import SessionReader
from kvstore.session import load_session
from kvstore.writer import SessionWriter
from retrieval.errors import EpochChangedError, IndexDamagedError, IndexShortError
from retrieval.index import KeyIndexReader
from svc.engine.index_memory import IndexMemory
from svc.engine.key_rows import key_index_path, open_key_index
from svc.engine.reduction.spec import NO_REDUCTION, ReductionSpec
from svc.engine.unit_rows import UnitRows

logger = logging.getLogger(__name__)

_HOT_TAIL_BYTES = 1 << 20  # nothing is appended


def header_fault(root: Path, session_id: str) -> str | None:
    """Return why a session's index cannot serve, from headers alone; None when nothing is seen.

    Raises:
        KVStoreError, OSError: the session cannot be looked at.
    """
    known = glance(root, session_id)
    if known is None:
        return "the last writer did not close it" if has_blocks(root, session_id) else None
    if known.durable_unit_count == 0:
        return None
    try:
        index = KeyIndexReader.open(key_index_path(root, session_id))
    except IndexDamagedError as error:
        return error.reason
    geometry = known.geometry
    try:
        if index.epoch != known.epoch:
            return f"it is of epoch {index.epoch}, the session of {known.epoch}"
        if (index.layer_count, index.dim) != (
            geometry.layer_count,
            geometry.kv_head_count * geometry.head_dim,
        ):
            return f"its rows are {index.layer_count} x {index.dim}"
        if index.count < known.durable_unit_count:
            return f"it has {index.count} rows for {known.durable_unit_count} units"
    except EpochChangedError:
        return None  # a writer came meanwhile, and makes it whole
    finally:
        index.close()
    return None


def row_fault(root: Path, session_id: str) -> str | None:
    """Return which row of a session's index is damaged; None when none is.

    For an index whose header is sound. Reads all rows, since a bit that flipped on the disk shows
    nowhere else. They are a small part of a store: a unit's row is as long as the keys and values
    of one of its tokens in half precision.

    Raises:
        KVStoreError, OSError: the session cannot be looked at.
    """
    known = glance(root, session_id)
    if known is None or known.durable_unit_count == 0:
        return None
    try:
        index = KeyIndexReader.open(key_index_path(root, session_id))
    except IndexDamagedError as error:
        return error.reason
    try:
        index.check_stored(known.durable_unit_count)
    except (EpochChangedError, IndexShortError):
        return None  # a writer came meanwhile, and makes it whole
    except IndexDamagedError as error:
        return error.reason
    finally:
        index.close()
    return None


def repair_index(
    root: Path,
    session_id: str,
    *,
    limits: BlockLimits,
    shm_dir: Path | None = None,
    arena: Arena | None = None,
    may_commit: Callable[[], bool] = lambda: True,
    min_epoch: int = 0,
    pinned: PinsNow = lambda: (),
) -> int:
    """Recover a session as a writer does, make its index whole, and return its rows.

    Needs no model: the session's own keys are read. The arguments are `SessionWriter.open`'s.

    Raises:
        KVStoreError: another writer has the session, it is damaged, or there is no room.
        OSError: there is no room for the index.
    """
    with ExitStack() as stack:
        reader = SessionReader.open(root, session_id)
        stack.callback(reader.close)
        geometry = reader.geometry
        if geometry is None:  # what there was of a log was torn
            return 0
        writer = SessionWriter.open(
            root,
            session_id,
            geometry=geometry,
            encoding=reader.encoding or "model",
            limits=limits,
            shm_dir=shm_dir,
            hot_tail_bytes=_HOT_TAIL_BYTES,
            arena=arena,
            may_commit=may_commit,
            min_epoch=min_epoch,
            pinned=pinned,
        )
        stack.callback(writer.close)
        memory = IndexMemory(arena, key_index_path(root, session_id), writer.room)
        stack.callback(memory.close)
        index = open_key_index(
            root,
            reader,
            reader.snapshot(),
            UnitRows(geometry, all_places=_reduction(root, session_id).keeps_units_whole),
            min_free_bytes=limits.min_free_bytes,
            room=memory.room,
        )
        stack.callback(index.close)
        return index.count


def _reduction(root: Path, session_id: str) -> ReductionSpec:
    """Return what the session was made with; a log without a record was never served."""
    try:
        identity = load_session(root, session_id).identity
    except SessionNotFoundError:
        return NO_REDUCTION
    return ReductionSpec.parse(str(identity.get("reduction", "none")))
