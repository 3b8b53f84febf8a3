"""Reading everything a store holds and saying what is damaged.

Safe beside writers and readers: it changes nothing; see `checking` for what counts as damage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from kvstore.checking import Damage, SessionCheck
from kvstore.paths import TOMBSTONE_NAME, sessions_folder

Progress = Callable[[int, int], None]
"""Called with (bytes read so far, bytes in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """What `verify_store` read and found."""

    session_count: int
    block_count: int
    unit_count: int
    byte_count: int
    damage: tuple[Damage, ...]


class StoreCheck:
    """One reading of a whole store. `place` says where it is, also after an interruption."""

    def __init__(
        self,
        root: Path,
        *,
        session_ids: Collection[str] | None = None,
        progress: Progress | None = None,
        on_damage: Callable[[Damage], None] | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            session_ids: which to read; None: all. One that is not there is passed over.
            progress: called slice by slice, and may wait there; bytes in all may grow a little
                under a live writer.
            on_damage: called with each damage when it is found.
        """
        self._root = root
        self._session_ids = session_ids
        self._progress = progress
        self._on_damage = on_damage
        self._damage: list[Damage] = []
        self._session: SessionCheck | None = None
        self._session_id = ""
        self._total_bytes = 0
        self.read_bytes = 0

    @property
    def place(self) -> str:
        """Where the reading is, in words."""
        if self._session is None:
            return "before the first session"
        return f"session {self._session_id}, block {self._session.block_index}"

    def run(self) -> StoreReport:
        """Read every byte of every session that is to be read."""
        wanted = self._session_ids
        folders = [
            folder
            for folder in _session_folders(self._root)
            if wanted is None or folder.name in wanted
        ]
        self._total_bytes = sum(
            path.stat().st_size for folder in folders for path in folder.glob("seg-*.kvs")
        )
        checks = []
        for folder in folders:
            check = SessionCheck(
                self._root, folder.name, on_read=self._count, on_damage=self._found
            )
            self._session, self._session_id = check, folder.name
            try:
                check.run()
            except FileNotFoundError:
                if folder.is_dir() and not (folder / TOMBSTONE_NAME).exists():
                    raise
                continue  # deleted meanwhile
            checks.append(check)
        return StoreReport(
            session_count=len(checks),
            block_count=sum(check.block_count for check in checks),
            unit_count=sum(check.unit_count for check in checks),
            byte_count=self.read_bytes,
            damage=tuple(self._damage),
        )

    def _count(self, byte_count: int) -> None:
        self.read_bytes += byte_count
        if self._progress is not None:
            self._progress(self.read_bytes, max(self.read_bytes, self._total_bytes))

    def _found(self, damage: Damage) -> None:
        if damage in self._damage:
            return  # two steps of a check met the same
        self._damage.append(damage)
        if self._on_damage is not None:
            self._on_damage(damage)


def verify_store(
    root: Path, progress: Progress | None = None, session_ids: Collection[str] | None = None
) -> StoreReport:
    """Read every byte of every session and report what does not match its checksum.

    Args:
        session_ids: as `StoreCheck` takes them.
        progress: called now and then; bytes in all may grow a little under a live writer.
    """
    return StoreCheck(root, session_ids=session_ids, progress=progress).run()


def _session_folders(root: Path) -> list[Path]:
    try:
        folders = sorted(sessions_folder(root).iterdir())
    except FileNotFoundError:
        return []
    return [
        folder for folder in folders if folder.is_dir() and not (folder / TOMBSTONE_NAME).exists()
    ]
