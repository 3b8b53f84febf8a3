"""Rotation tables of positions 0, 1, 2, ..., computed once and shared by all answers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svc.engine.rope import Rope, RopeTables

_FIRST_COUNT = 1024


class PositionTables:
    """Looks tables up instead of computing them per layer, request and step.

    A position's row does not depend on the others, so looking up equals computing. Of a model of
    several axes only runs of text, at the same place on all of them, are looked up.
    """

    def __init__(self, rope: Rope, like: Tensor) -> None:
        """Serve tables of the dtype and on the device of `like`."""
        self._rope = rope
        self._like = like
        self._all = self._compute(_FIRST_COUNT)

    def of(self, positions: NDArray[np.int64]) -> RopeTables:
        """Return the tables of the positions, (n,) or (axis_count, n), each >= 0."""
        if positions.ndim == 2:
            if (positions != positions[0]).any():
                return self._rope.tables(torch.from_numpy(positions), self._like)
            positions = positions[0]
        stop = int(positions.max(initial=-1)) + 1
        if stop > self._all.cos.shape[1]:
            self._all = self._compute(1 << (stop - 1).bit_length())
        start = int(positions[0]) if len(positions) else 0
        if stop - start == len(positions) and (np.diff(positions) == 1).all():
            return RopeTables(self._all.cos[:, start:stop], self._all.sin[:, start:stop])
        index = torch.from_numpy(positions).to(self._like.device)
        return RopeTables(self._all.cos[:, index], self._all.sin[:, index])

    def _compute(self, count: int) -> RopeTables:
        positions = torch.arange(count, device=self._like.device)
        return self._rope.tables(positions, self._like)
