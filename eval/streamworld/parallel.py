"""Two training processes that average their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters and their share of the stage's learning rate."""

    parameters: list[nn.Parameter]
    rate_factor: float


class GradientAverager:
    """Averages gradients, and a few figures, over the processes in one reduction."""

    def __init__(self, parameters: list[nn.Parameter], *, figures: int) -> None:
        self._parameters = parameters
        self._count = sum(p.numel() for p in parameters)
        self._buffer = torch.zeros(self._count + figures)

    def __call__(self, *figures: float) -> list[float]:
        """Average `.grad` in place; returns the averaged figures."""
        if not dist.is_initialized():
            return list(figures)
        gradients: Tensor = self._buffer
        at = 0
        for p in self._parameters:
            part = gradients[at : at + p.numel()]
            if p.grad is None:
                part.zero_()
            else:
                part.copy_(p.grad.reshape(-1))
            at += p.numel()
        gradients[self._count :] = torch.tensor(figures)
        dist.all_reduce(gradients)
        gradients /= dist.get_world_size()
        at = 0
        for p in self._parameters:
            p.grad = gradients[at : at + p.numel()].view(p.shape)
            at += p.numel()
        return [float(x) for x in gradients[self._count :]]
