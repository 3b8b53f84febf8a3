"""What one answer goes on without: units that a layer chose and that could not be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import SliceCorruptError
from svc.engine.errors import EngineError


class EvidenceLostError(EngineError):
    """More of what a layer chose is damaged than an answer may go on without."""

    def __init__(self, first: SliceCorruptError, lost_count: int, wanted_count: int) -> None:
        super().__init__(
            f"{lost_count} of {wanted_count} units that layer {first.layer_index} chose are lost: "
            f"{first}"
        )
        self.first = first
        """One of the slices that cannot be read."""
        self.lost_count = lost_count
        self.wanted_count = wanted_count


@dataclass(frozen=True, slots=True, kw_only=True)
class LostUnit:
    """A unit that an answer did without, from one layer on."""

    unit_index: int
    layer_index: int
    """The first layer that could not read it; layers before it had read theirs."""
    block_index: int | None
    """Its block on disk; None: it was in the hot tail only."""
    unreadable: bool
    """Whether the disk refused; otherwise the bytes were not those that were written."""


class Losses:
    """The units that one answer has lost so far, over all layers and passes."""

    def __init__(self, unit_count: int, *, first_unit: int = 0, max_fraction: float) -> None:
        """Nothing is lost yet.

        Args:
            unit_count: of the snapshot.
            first_unit: units before it were dropped: none to choose from, and no loss either.
            max_fraction: share of what a layer chose that may be lost, in [0, 1].
        """
        self.mask: NDArray[np.bool_] = np.zeros(unit_count, np.bool_)
        """(unit_count,): which units no further layer reads."""
        self.mask[:first_unit] = True
        self._first_unit = first_unit
        self._max_fraction = max_fraction
        self._errors: dict[int, SliceCorruptError] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    @property
    def dropped(self) -> NDArray[np.bool_] | None:
        """(unit_count,): which units were dropped before the question; None: none was."""
        if not self._first_unit:
            return None
        return np.arange(len(self.mask)) < self._first_unit

    def add(self, errors: Iterable[SliceCorruptError]) -> None:
        """Give up the units of these slices."""
        for error in errors:
            self._errors.setdefault(error.unit_index, error)
            self.mask[error.unit_index] = True

    def check(self, lost: set[int], wanted_count: int) -> None:
        """Judge one layer.

        Args:
            lost: the units that it chose and lost, those among their replacements included.
            wanted_count: units that its losses are a share of.

        Raises:
            EvidenceLostError: too many.
        """
        if len(lost) > self._max_fraction * wanted_count:
            first = self._errors[min(lost)]
            raise EvidenceLostError(first, len(lost), wanted_count) from first

    def units(self) -> tuple[LostUnit, ...]:
        """Return what was lost, in order of time."""
        return tuple(
            LostUnit(
                unit_index=unit,
                layer_index=error.layer_index,
                block_index=error.block_index,
                unreadable=error.unreadable,
            )
            for unit, error in sorted(self._errors.items())
        )
