"""`lookback store repair`: mends what can be mended, and says what cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from svc.cli.failures import CommandError
from svc.cli.store_folder import (
    FolderArgument,
    SessionsArgument,
    chosen_sessions,
    disk_limits,
    session_progress,
)
from svc.cli.store_verify import damage_line
from svc.cli.text import printable
from svc.logs import only_errors_of

if TYPE_CHECKING:
    from svc.config import Settings


def repair(
    folder: FolderArgument,
    sessions: SessionsArgument = None,
) -> None:
    """Mends what crashes left: interrupted deletions and imports, stale hot tails, torn tails, and
    key indexes that are missing or not whole.

    The service may be running; sessions that are being pushed are left to it. Acknowledged blocks
    that are damaged are named and stay as they are: nothing brings them back but `store import`.
    Exit status 1 if there are any.
    """
    from svc.config import read_settings

    names = chosen_sessions(folder, sessions)
    settings = read_settings()
    if not sessions:
        _clear_leftovers(folder, settings)
        names = chosen_sessions(folder, None)
    beyond, done = [], 0
    with only_errors_of("svc.engine"), session_progress("repair", len(names)) as begin:
        try:
            for name in names:  # what is done is said here
                begin(name)
                if not _repair(folder, name, settings):
                    beyond.append(name)
                done += 1
        except KeyboardInterrupt:
            sys.stderr.write(f"stopped: {done} of {len(names)} sessions are done\n")
            raise
    if beyond:
        raise CommandError(
            "STORE_DAMAGED", f"{len(beyond)} of {len(names)} sessions cannot be made whole"
        )
    sys.stdout.write(
        f"{len(names)} sessions are whole as far as their headers say; "
        "`lookback store scrub` reads their keys and values\n"
    )


def _clear_leftovers(folder: Path, settings: Settings) -> None:
    from kvstore.leftovers import clear_leftovers

    cleared = clear_leftovers(folder, shm_dir=settings.shm_dir)
    for count, what in (
        (cleared.deletion_count, "interrupted deletions finished"),
        (cleared.import_count, "interrupted imports removed"),
        (cleared.hot_tail_count, "stale hot tails removed"),
    ):
        if count:
            sys.stdout.write(f"{count} {what}\n")


def _repair(folder: Path, name: str, settings: Settings) -> bool:
    """Mends one session and says what was done; returns whether it is whole then."""
    from kvstore.errors import KVStoreError, SessionLockedError, SessionNotFoundError
    from kvstore.session import load_session
    from svc.engine.index_repair import header_fault, repair_index, row_fault

    try:
        load_session(folder, name)
        torn_bytes = _torn_bytes(folder, name)
        fault = header_fault(folder, name) or row_fault(folder, name)
        if fault is None and not torn_bytes:
            return True
        row_count = repair_index(
            folder, name, limits=disk_limits(settings), shm_dir=settings.shm_dir
        )
    except SessionNotFoundError:
        return True  # deleted meanwhile, or being deleted
    except SessionLockedError:
        sys.stdout.write(f"{name}: is being written, and left to its writer\n")
        return True
    except KVStoreError as error:
        _say_what_is_lost(folder, name, error)
        return False
    if torn_bytes:
        sys.stdout.write(f"{name}: {torn_bytes:,} bytes of a torn, never acknowledged tail cut\n")
    if fault is not None:
        sys.stdout.write(f"{name}: key index made whole, {row_count} rows ({fault})\n")
    return True


def _torn_bytes(folder: Path, name: str) -> int:
    from kvstore.paths import session_folder, session_hash
    from kvstore.scan import scan_log

    return scan_log(session_folder(folder, name), name, session_hash(name)).torn_bytes


def _say_what_is_lost(folder: Path, name: str, error: Exception) -> None:
    """Names every damaged place of a session, the first of which stopped its repair."""
    from kvstore.checking import Damage, SessionCheck

    found: list[Damage] = []
    SessionCheck(folder, name, on_read=lambda count: None, on_damage=found.append).run()
    if not found:
        sys.stdout.write(f"{name}: {printable(str(error))}\n")
    for damage in found:
        sys.stdout.write(damage_line(damage))
