"""The reduction of one stream: a policy, and the state that its last kept unit left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from svc.engine.adapters.base import Adapter, WholeUnit
from svc.engine.encoder import StreamEncoder, UnitEmbeds
from svc.engine.layout import Cells, pictured
from svc.engine.reduction.base import FeaturePolicy, KeyPolicy, ReductionState, UnitFeatures
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.window_cache import UnitKV


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReducedUnit:
    """What is kept of a unit."""

    cells: Cells
    """(n, 2) of the kept tokens, in order."""
    drop_fraction: float
    """Share of its picture's tokens that were dropped."""
    position_span: int
    kv: UnitKV
    state: ReductionState
    """Of the policy, after it."""


class Reducer:
    """Runs units through a policy and the text model. Not thread-safe."""

    def __init__(
        self, spec: ReductionSpec, adapter: Adapter, state: ReductionState | None = None
    ) -> None:
        """Begin a stream, or go on from a state."""
        self._policy = spec.make()
        self._adapter = adapter
        self.state = state or ReductionState()
        """After the last unit that the caller kept: it sets it, from ReducedUnit."""

    def encode(self, encoder: StreamEncoder, units: Sequence[WholeUnit]) -> Iterator[ReducedUnit]:
        """Reduce and encode the next units; in one pass where the policy allows.

        Raises:
            Exception: of the model; the stream goes on from `state` in a new encoder.
        """
        if isinstance(self._policy, KeyPolicy):
            return self._pruned(encoder, units, self._policy)
        return self._chosen(encoder, units, self._policy)

    def _chosen(
        self, encoder: StreamEncoder, units: Sequence[WholeUnit], policy: FeaturePolicy
    ) -> Iterator[ReducedUnit]:
        state = self.state
        choices: list[tuple[Tensor, ReductionState]] = []
        for unit in units:
            chosen, state = policy.choose(self._features(unit), state)
            choices.append((_with_text(unit, chosen), state))
        encoded = encoder.encode(
            [self._embeds(unit, kept) for unit, (kept, _) in zip(units, choices, strict=True)]
        )
        for unit, (kept, after), kv in zip(units, choices, encoded, strict=True):
            yield _reduced(unit, kept, kv, after)

    def _pruned(
        self, encoder: StreamEncoder, units: Sequence[WholeUnit], policy: KeyPolicy
    ) -> Iterator[ReducedUnit]:
        """One unit a pass: a unit sees what was kept of those before it."""
        for unit in units:
            whole = self._embeds(unit, torch.arange(len(unit.cells)))
            kept, kv = encoder.encode_pruned(whole, partial(_kept_by_keys, unit, policy))
            yield _reduced(unit, kept, kv, self.state)

    def _embeds(self, unit: WholeUnit, kept: Tensor) -> UnitEmbeds:
        positions = self._adapter.local_positions(unit.cells, np.array([len(unit.cells)]))
        on_device = kept.to(unit.embeds.device)
        return UnitEmbeds(
            embeds=unit.embeds[on_device],
            positions=torch.from_numpy(positions)[:, kept],
            position_span=unit.position_span,
            deepstack=None if unit.deepstack is None else unit.deepstack[:, on_device],
        )

    def _features(self, unit: WholeUnit) -> UnitFeatures:
        return UnitFeatures(
            embeds=unit.embeds[_picture(unit).to(unit.embeds.device)],
            pixels=partial(self._adapter.shown, unit.pixels),
            grid=self._adapter.grid,
            gap_before=unit.gap_before,
        )


def _picture(unit: WholeUnit) -> Tensor:
    """Return the unit's tokens that are of its picture."""
    return torch.from_numpy(np.flatnonzero(pictured(unit.cells)))


def _with_text(unit: WholeUnit, chosen: Tensor) -> Tensor:
    """Return which tokens stay when of the picture's `chosen` do: its text does, too."""
    stay = torch.from_numpy(~pictured(unit.cells))
    stay[_picture(unit)[chosen]] = True
    return stay.nonzero()[:, 0]


def _kept_by_keys(unit: WholeUnit, policy: KeyPolicy, keys: Tensor) -> Tensor:
    return _with_text(unit, policy.choose_by_keys(keys[:, _picture(unit)]))


def _reduced(unit: WholeUnit, kept: Tensor, kv: UnitKV, state: ReductionState) -> ReducedUnit:
    cells = unit.cells[kept.numpy()]
    return ReducedUnit(
        cells=cells,
        drop_fraction=1 - int(pictured(cells).sum()) / int(pictured(unit.cells).sum()),
        position_span=unit.position_span,
        kv=kv,
        state=state,
    )
