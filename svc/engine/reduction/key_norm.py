"""Keeps the tokens with the smallest keys, one set for all layers.

Source: Schneider et al., QuickVideo, arXiv:2505.16175: small key norms mark tokens that much
attention goes to. It prunes each layer apart; one set for all keeps a unit's tokens one set.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from svc.engine.reduction.base import smallest


@dataclass(frozen=True, slots=True)
class KeyNorm:
    """A fixed share of every unit, chosen by the norms of its keys."""

    share: float

    def choose_by_keys(self, keys: Tensor) -> Tensor:
        """Return the tokens with the smallest norms, averaged over layers of equal weight."""
        norms = keys.float().norm(dim=-1).mean(dim=-1)
        norms = norms / norms.mean(dim=1, keepdim=True)
        return smallest(norms.mean(dim=0).cpu(), self.share)
