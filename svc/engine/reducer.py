"""The reduction of one stream: a policy, and the state that its last kept unit left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from svc.engine.adapters.base import Adapter
from svc.engine.encoder import StreamEncoder, UnitEmbeds
from svc.engine.reduction.base import FeaturePolicy, KeyPolicy, ReductionState, UnitFeatures
from svc.engine.reduction.spec import ReductionSpec
from svc.engine.window_cache import UnitKV


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WholeUnit:
    """One unit as the vision tower leaves it."""

    pixels: Tensor
    """(frames_per_unit, 3, height, width), normalised."""
    embeds: Tensor
    """(tokens, hidden)"""
    gap_before: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReducedUnit:
    """What is kept of a unit."""

    kept: Tensor
    """(n,) int64 on the CPU, ascending."""
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
        self._positions = torch.from_numpy(adapter.local_positions())
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
            kept, state = policy.choose(self._features(unit), state)
            choices.append((kept, state))
        encoded = encoder.encode(
            [self._embeds(unit, kept) for unit, (kept, _) in zip(units, choices, strict=True)]
        )
        for (kept, after), kv in zip(choices, encoded, strict=True):
            yield ReducedUnit(kept=kept, kv=kv, state=after)

    def _pruned(
        self, encoder: StreamEncoder, units: Sequence[WholeUnit], policy: KeyPolicy
    ) -> Iterator[ReducedUnit]:
        """One unit a pass: a unit sees what was kept of those before it."""
        for unit in units:
            whole = self._embeds(unit, torch.arange(len(self._positions)))
            kept, kv = encoder.encode_pruned(whole, policy.choose_by_keys)
            yield ReducedUnit(kept=kept, kv=kv, state=self.state)

    def _embeds(self, unit: WholeUnit, kept: Tensor) -> UnitEmbeds:
        return UnitEmbeds(
            embeds=unit.embeds[kept.to(unit.embeds.device)],
            positions=self._positions[kept],
            position_span=self._adapter.position_span,
        )

    def _features(self, unit: WholeUnit) -> UnitFeatures:
        return UnitFeatures(
            embeds=unit.embeds,
            pixels=partial(self._adapter.shown, unit.pixels),
            grid=self._adapter.grid,
            gap_before=unit.gap_before,
        )
