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
from svc.engine.reduction.base import KeyPolicy, ReductionState, UnitFeatures
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedUnits:
    """Units of which it is known what is kept, on their way through the text model."""

    units: Sequence[WholeUnit]
    kept: Sequence[Tensor]
    states: Sequence[ReductionState]
    embeds: list[UnitEmbeds]

    def finish(self, made: Sequence[UnitKV]) -> Iterator[ReducedUnit]:
        """Return the units with what the text model made of `embeds`."""
        for unit, kept, state, kv in zip(self.units, self.kept, self.states, made, strict=True):
            yield _reduced(unit, kept, kv, state)


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

    @property
    def chooses_before(self) -> bool:
        """Whether what is kept is known before the text model runs: `plan` serves such alone."""
        return not isinstance(self._policy, KeyPolicy)

    def encode(self, encoder: StreamEncoder, units: Sequence[WholeUnit]) -> Iterator[ReducedUnit]:
        """Reduce and encode the next units; in one pass where the policy allows.

        Raises:
            Exception: of the model; the stream goes on from `state` in a new encoder.
        """
        if isinstance(self._policy, KeyPolicy):
            return self._pruned(encoder, units, self._policy)
        planned = self.plan(units)
        return planned.finish(encoder.encode(planned.embeds))

    def plan(self, units: Sequence[WholeUnit]) -> PlannedUnits:
        """Choose what is kept of the next units, of a policy that can tell before they are encoded.

        Nothing is remembered: `state` says what they are compared with.
        """
        policy, state = self._policy, self.state
        if isinstance(policy, KeyPolicy):
            raise TypeError("this policy chooses by what the text model makes of a unit")
        kept: list[Tensor] = []
        states: list[ReductionState] = []
        for unit in units:
            chosen, state = policy.choose(self._features(unit), state)
            kept.append(_with_text(unit, chosen))
            states.append(state)
        embeds = [self._embeds(unit, own) for unit, own in zip(units, kept, strict=True)]
        return PlannedUnits(units=units, kept=kept, states=states, embeds=embeds)

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
