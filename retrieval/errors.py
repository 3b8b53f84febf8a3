"""What can go wrong in retrieval, one class per decision that the caller can make."""

from __future__ import annotations

from pathlib import Path


class RetrievalError(Exception):
    """Base of every error that retrieval raises on purpose."""


class IndexDamagedError(RetrievalError):
    """The file is not an index of this geometry, or is torn.

    An index is derived data: create it anew and append the rows again from the stored keys.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot serve as a key index: {reason}")
        self.path = path
        self.reason = reason


class IndexShortError(RetrievalError):
    """More rows were asked for than are published; ask for less, or later."""

    def __init__(self, path: Path, *, asked_count: int, row_count: int) -> None:
        super().__init__(f"{path} holds {row_count} rows, {asked_count} were asked for")
        self.path = path
        self.asked_count = asked_count
        self.row_count = row_count


class EpochChangedError(RetrievalError):
    """A writer recovered the session meanwhile: what was read is void; open a new reader."""

    def __init__(self, path: Path, *, opened_epoch: int, epoch: int) -> None:
        super().__init__(f"{path} was read at epoch {opened_epoch} and is now at epoch {epoch}")
        self.path = path
        self.opened_epoch = opened_epoch
        self.epoch = epoch


class BudgetTooSmallError(RetrievalError):
    """Not even the newest unit, which always comes first, fits the budget."""

    def __init__(self, *, token_count: int, position_span: int, budget: object) -> None:
        super().__init__(
            f"the newest unit takes {token_count} tokens and {position_span} positions; "
            f"allowed: {budget}"
        )
        self.token_count = token_count
        self.position_span = position_span
        self.budget = budget
