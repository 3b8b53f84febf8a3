"""Room for a session to grow: under its own budget, the store's, and the disk's reserve.

All writers of one store in this process share what was counted, so that two that grow at the same
moment do not both take the last room. Another process's growth is seen at the next count.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvstore.budget import DiskBudget
from kvstore.diskio import DiskIO
from kvstore.diskuse import used_bytes
from kvstore.errors import BudgetExceededError, StoreFullError
from kvstore.limits import BlockLimits
from kvstore.paths import session_folder

_COUNT_AGAIN_S = 5.0
"""Looking at every file of a large store takes a while; growth in between is added up."""


class StoreUse:
    """What a whole store takes. Thread-safe."""

    def __init__(self, root: Path) -> None:
        """Internal: use `of`."""
        self._root = root
        self._lock = threading.Lock()
        self._counted_bytes = 0
        self._grown_bytes = 0
        self._claimed_bytes = 0
        self._counted_at_s: float | None = None

    @classmethod
    def of(cls, root: Path) -> StoreUse:
        """The one object of a store in this process."""
        key = root.resolve()
        with _USES_LOCK:
            found = _USES.get(key)
            if found is None:
                found = _USES[key] = cls(key)
            return found

    def claim(self, needed_bytes: int, line_bytes: int) -> int:
        """Take room up to a line; what is used is returned, and when it did not fit, negated.

        What was taken is given back by `settle`.
        """
        with self._lock:
            now_s = time.monotonic()
            stale = self._counted_at_s is None or now_s - self._counted_at_s > _COUNT_AGAIN_S
            if stale or self._sum() + needed_bytes > line_bytes:
                self._counted_bytes, self._grown_bytes = used_bytes(self._root), 0
                self._counted_at_s = now_s
            used = self._sum()
            if used + needed_bytes > line_bytes:
                return -max(used, 1)
            self._claimed_bytes += needed_bytes
            return used

    def settle(self, claimed_bytes: int, *, grown: bool) -> None:
        """What was claimed is in files now, or will not come."""
        with self._lock:
            self._claimed_bytes -= claimed_bytes
            self._grown_bytes += claimed_bytes if grown else 0

    def _sum(self) -> int:
        return self._counted_bytes + self._grown_bytes + self._claimed_bytes


_USES: weakref.WeakValueDictionary[Path, StoreUse] = weakref.WeakValueDictionary()
_USES_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What stands in the way of growing."""

    error: StoreFullError
    excess_bytes: int
    """What must go for it to fit."""
    spare_bytes: int
    """What should go beyond that, down to the low watermark."""


class Space:
    """What one session may still take. Owned by its writer's thread."""

    def __init__(
        self, root: Path, folder: Path, *, budget: DiskBudget, min_free_bytes: int, io: DiskIO
    ) -> None:
        self._folder = folder
        self._root = root
        self._budget = budget
        self._min_free_bytes = min_free_bytes
        self._io = io
        self._store = StoreUse.of(root) if budget.store_bytes else None
        self.free: Callable[[Shortage], bool] | None = None
        """Makes room, and says whether it is worth trying again."""

    @contextmanager
    def claim(
        self, needed_bytes: int, *, use_reserve: bool = False, aside: bool = False
    ) -> Iterator[None]:
        """Hold room for files that grow by so much inside the `with`.

        Args:
            use_reserve: for what recovery needs: up to the budgets, not to their high watermark.
            aside: for what takes the place of something larger right after: up to the budgets and
                the end of the disk, and nothing is freed for it.

        Raises:
            BudgetExceededError: a budget does not allow it.
            StoreFullError: the file system would have less free than is to be left.
        """
        while (shortage := self._claim(needed_bytes, use_reserve, aside)) is not None:
            if aside or self.free is None or not self.free(shortage):
                raise shortage.error
        grown = False
        try:
            yield
            grown = True
        finally:
            if self._store is not None:
                self._store.settle(needed_bytes, grown=grown)

    def _claim(self, needed_bytes: int, use_reserve: bool, aside: bool) -> Shortage | None:
        use_reserve = use_reserve or aside
        return (
            self._session_shortage(needed_bytes, use_reserve=use_reserve)
            or self._disk_shortage(needed_bytes, 0 if aside else self._min_free_bytes)
            # Last: it takes the room.
            or self._store_shortage(needed_bytes, use_reserve=use_reserve)
        )

    def _session_shortage(self, needed_bytes: int, *, use_reserve: bool) -> Shortage | None:
        budget_bytes = self._budget.session_bytes
        line_bytes = self._line(budget_bytes, use_reserve=use_reserve)
        if not budget_bytes:
            return None
        used = used_bytes(self._folder)
        if used + needed_bytes <= line_bytes:
            return None
        error = BudgetExceededError(
            self._folder, "session_budget_bytes", budget_bytes, line_bytes, used, needed_bytes
        )
        return self._shortage(error, used + needed_bytes, line_bytes, budget_bytes)

    def _store_shortage(self, needed_bytes: int, *, use_reserve: bool) -> Shortage | None:
        budget_bytes = self._budget.store_bytes
        if self._store is None:
            return None
        line_bytes = self._line(budget_bytes, use_reserve=use_reserve)
        used = self._store.claim(needed_bytes, line_bytes)
        if used >= 0:
            return None
        error = BudgetExceededError(
            self._root, "disk_budget_bytes", budget_bytes, line_bytes, -used, needed_bytes
        )
        return self._shortage(error, needed_bytes - used, line_bytes, budget_bytes)

    def _disk_shortage(self, needed_bytes: int, left_bytes: int) -> Shortage | None:
        free_bytes = self._io.free_bytes(self._folder)
        excess_bytes = needed_bytes + left_bytes - free_bytes
        if excess_bytes <= 0:
            return None
        error = StoreFullError(self._folder, needed_bytes, free_bytes, left_bytes)
        return Shortage(error=error, excess_bytes=excess_bytes, spare_bytes=0)

    def _line(self, budget_bytes: int, *, use_reserve: bool) -> int:
        return budget_bytes if use_reserve else int(budget_bytes * self._budget.high_fraction)

    def _shortage(
        self,
        error: StoreFullError,
        wanted_bytes: int,
        line_bytes: int,
        budget_bytes: int,
    ) -> Shortage:
        spare_bytes = max(0, line_bytes - int(budget_bytes * self._budget.low_fraction))
        return Shortage(
            error=error,
            excess_bytes=wanted_bytes - line_bytes,
            spare_bytes=spare_bytes,
        )


def check_room(root: Path, session_id: str, limits: BlockLimits, io: DiskIO | None = None) -> None:
    """Raise unless a session could grow at all, and take nothing.

    Raises:
        StoreFullError: a budget is full, or the disk up to its reserve.
    """
    space = Space(
        root,
        session_folder(root, session_id),
        budget=limits.budget,
        min_free_bytes=limits.min_free_bytes,
        io=io or DiskIO(),
    )
    with space.claim(0):
        pass
