"""Opening a session for writing: lock, recover, begin a new epoch. All of it, or nothing stays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvstore.arena import Arena
from kvstore.blocklog import BlockLog
from kvstore.control import ControlPage
from kvstore.controltext import ControlText
from kvstore.diskio import DiskIO, make_folders
from kvstore.encoding import Layout
from kvstore.errors import GeometryMismatchError, SessionNotFoundError, WriterFencedError
from kvstore.hotfile import clean_stale_hot_tails
from kvstore.hottail import HotTail
from kvstore.limits import BlockLimits
from kvstore.locking import lock_session, release_session
from kvstore.paths import TOMBSTONE_NAME, session_folder, session_hash
from kvstore.pins import PinsNow
from kvstore.recovery import Recovery, describe_log, repair_log
from kvstore.scan import scan_log
from kvstore.space import Space

logger = logging.getLogger(__name__)

_MIN_RING_BYTES = 1 << 20
MAX_DEFAULT_RING_BYTES = 1 << 30
"""A hot tail whose size nobody asked for takes no more; blocks may close early for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterParts:
    """What a writer works with, recovered and ready."""

    lock_fd: int
    control: ControlPage
    hot: HotTail
    log: BlockLog
    space: Space
    recovery: Recovery


def default_hot_tail_bytes(session_id: str, layout: Layout, limits: BlockLimits) -> int:
    """Room for about three full blocks: one pending and two to read from memory."""
    wanted = 3 * layout.geometry.layer_count * layout.extent_bytes(limits.block_tokens)
    if wanted > MAX_DEFAULT_RING_BYTES:
        logger.warning(
            "hot tail is smaller than three blocks; ask for a size, or for smaller blocks",
            extra={
                "session": session_id,
                "wanted_bytes": wanted,
                "hot_tail_bytes": MAX_DEFAULT_RING_BYTES,
            },
        )
    return min(max(wanted, _MIN_RING_BYTES), MAX_DEFAULT_RING_BYTES)


def _check_owned(session_id: str, may_commit: Callable[[], bool]) -> None:
    if not may_commit():
        raise WriterFencedError(session_id)


def _is_kept(session_id: str, layout: Layout, arena: Arena | None) -> bool:
    """Whether units stay in memory when they leave the hot tail."""
    if arena is None or arena.fits(layout):
        return arena is not None
    logger.warning(
        "the RAM tier keeps no full unit of this session: its encoding is longer than a slot",
        extra={
            "session": session_id,
            "encoding": layout.encoding,
            "slot_bytes": arena.shape.slot_bytes,
        },
    )
    return False


def open_parts(
    root: Path,
    session_id: str,
    *,
    layout: Layout,
    limits: BlockLimits,
    shm_dir: Path | None,
    hot_tail_bytes: int | None,
    io: DiskIO,
    min_epoch: int,
    arena: Arena | None,
    pinned: PinsNow,
    may_commit: Callable[[], bool],
) -> WriterParts:
    """Lock and recover a session; see `SessionWriter.open`."""
    folder = session_folder(root, session_id)
    make_folders(io, folder)
    hash_ = session_hash(session_id)
    with ExitStack() as undo:
        lock_fd = lock_session(folder, session_id)
        undo.callback(release_session, lock_fd)
        if (folder / TOMBSTONE_NAME).exists():
            raise SessionNotFoundError(session_id)
        control = ControlPage.open(folder, hash_, writable=True)
        acknowledged, begun_epoch = control.begun() if control else (0, 0)
        scan = scan_log(
            folder,
            session_id,
            hash_,
            acknowledged_block_count=acknowledged,
            begun_epoch=begun_epoch,
        )
        if scan.layout is not None and scan.layout != layout:
            raise GeometryMismatchError(session_id, scan.layout, layout)
        # Read before the new epoch is begun: what a clean close left is still true after it.
        settled_pts_s = control.settled_at_close() if control else None
        epoch = 1 + max(scan.highest_epoch, control.last_epoch() if control else 0)
        epoch = max(epoch, min_epoch)
        repair_log(folder, scan, io)
        recovery = describe_log(folder, session_id, scan, epoch)
        if control is None:
            control = ControlPage.create(folder, hash_, io)
        undo.callback(control.close)
        # Readers that map the dead writer's ring keep it; a name may come again, and so must go.
        clean_stale_hot_tails(root, shm_dir=shm_dir, session_id=session_id)
        hot = HotTail.create(
            root,
            session_id,
            epoch=epoch,
            layout=layout,
            ring_bytes=hot_tail_bytes or default_hot_tail_bytes(session_id, layout, limits),
            first_unit=recovery.durable_unit_count,
            shm_dir=shm_dir,
            min_free_bytes=limits.min_free_bytes,
            io=io,
            arena=arena,
        )
        undo.callback(hot.close)
        space = Space(
            root, folder, budget=limits.budget, min_free_bytes=limits.min_free_bytes, io=io
        )
        log = BlockLog(
            folder,
            session_id,
            layout=layout,
            limits=limits,
            epoch=epoch,
            scan=scan,
            space=space,
            announce_floor=control.set_first_unit,
            announce_rewrite=control.announce_rewrite,
            pinned=pinned,
            check_owned=partial(_check_owned, session_id, may_commit),
            io=io,
            kept=_is_kept(session_id, layout, arena),
        )
        undo.callback(log.abandon)
        control.begin_epoch(
            epoch,
            ControlText(layout, hot.path),
            units=recovery.durable_unit_count,
            blocks=recovery.durable_block_count,
            first_unit=recovery.first_unit,
            settled_pts_s=recovery.durable_pts_s if settled_pts_s is None else settled_pts_s,
        )
        undo.pop_all()
    return WriterParts(
        lock_fd=lock_fd, control=control, hot=hot, log=log, space=space, recovery=recovery
    )
