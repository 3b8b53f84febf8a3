"""What a policy is: features of one unit and an explicit state in, kept tokens and a state out.

Policies hold nothing of a stream, so a stream can go back to where it was by its state alone.
Kept tokens keep their positions, and every unit keeps at least one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from safetensors.torch import load, save
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitFeatures:
    """One whole unit, as policies see it."""

    embeds: Tensor
    """(tokens, hidden): what the vision tower and projector made, in the model's dtype."""
    pixels: Callable[[], Tensor]
    """Makes (frames_per_unit, 3, height, width) float32 in [0, 1], on the CPU: work that a policy
    which compares features does not ask for."""
    grid: tuple[int, int]
    """Rows and columns of the tokens, which lie in reading order."""
    gap_before: bool
    """A hole in the stream lies before it: nothing is known of what it continues."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReductionState:
    """What a policy remembers of a stream."""

    reference: Tensor | None = None
    """What the next unit is compared with, one row per place; None before the first unit."""
    units_since_whole: int = 0
    """Units since the last one that was kept whole."""

    def to_bytes(self) -> bytes:
        """Return the state in a form that `from_bytes` takes, with every bit of the reference."""
        numbers = {"units_since_whole": torch.tensor([self.units_since_whole])}
        if self.reference is not None:
            numbers["reference"] = self.reference.contiguous().cpu()
        return save(numbers)

    @classmethod
    def from_bytes(cls, data: bytes) -> ReductionState:
        """Read what `to_bytes` made; the reference comes back on the CPU."""
        numbers = load(data)
        return cls(
            reference=numbers.get("reference"),
            units_since_whole=int(numbers["units_since_whole"][0]),
        )


class FeaturePolicy(Protocol):
    """Chooses before the text model runs, which then sees the kept tokens alone."""

    def choose(self, unit: UnitFeatures, state: ReductionState) -> tuple[Tensor, ReductionState]:
        """Return the kept tokens and the state for the next unit.

        Returns:
            kept: (n,) int64 on the CPU, ascending, n >= 1.
            state: to be given with the next unit, should this one be stored.
        """
        ...


@runtime_checkable
class KeyPolicy(Protocol):
    """Chooses by what the text model made of the whole unit: it saves memory, and no work."""

    def choose_by_keys(self, keys: Tensor) -> Tensor:
        """Return the kept tokens, (n,) int64 on the CPU, ascending, n >= 1.

        Args:
            keys: (layers, tokens, kv_heads, head_dim), before RoPE.
        """
        ...


Policy = FeaturePolicy | KeyPolicy


def similarity(reference: Tensor, embeds: Tensor) -> Tensor:
    """Return each row's cosine with the one at its place, (tokens,) float32 on the CPU.

    To three decimals: how many units go through the vision tower at once shows in later ones, and
    what is kept of a still picture, where all cosines are nearly 1, must not hang on it.
    """
    reference = reference.to(embeds.device)
    alike = torch.cosine_similarity(reference.float(), embeds.float(), dim=1)
    return alike.round(decimals=3).cpu()


def all_tokens(unit: UnitFeatures) -> Tensor:
    """Return every token of the unit."""
    return torch.arange(unit.embeds.shape[0])


def below(alike: Tensor, threshold: float) -> Tensor:
    """Return the tokens whose likeness is at most the threshold, or else the least alike one."""
    kept = torch.nonzero(alike <= threshold)[:, 0]
    return kept if len(kept) else torch.argmin(alike)[None]


def smallest(scores: Tensor, share: float) -> Tensor:
    """Return the places of the smallest scores, a share of all rounded up, ascending.

    Of equal scores the first.
    """
    count = max(1, -int(-share * len(scores) // 1))
    return torch.sort(scores, stable=True).indices[:count].sort().values
