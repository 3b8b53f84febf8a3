"""Rotary positions at places of our choosing, with the model's own tables and own rotation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SAFE_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Types whose frequencies do not depend on the length of the sequence."""


@dataclass(frozen=True, slots=True, eq=False)
class RopeTables:
    """cos and sin of a run of positions, each (1, n, head_dim)."""

    cos: Tensor
    sin: Tensor

    def tail(self, count: int) -> RopeTables:
        """Return the tables of the last `count` positions."""
        start = self.cos.shape[1] - count
        return RopeTables(self.cos[:, start:], self.sin[:, start:])


class Rope:
    """Rotates keys and queries of one text model."""

    def __init__(self, text_model: Any) -> None:
        self._module: Any = text_model.rotary_emb
        self.axis_count = 3 if hasattr(self._module, "mrope_section") else 1
        # yarn multiplies cos and sin by this. The pass at position 0 has multiplied q and k by it
        # already, so our tables must not do it again.
        self._scaling = float(self._module.attention_scaling)
        self._rotate = _rotation_of(text_model)

    def tables(self, positions: Tensor, like: Tensor) -> RopeTables:
        """Return the tables of the positions, in the dtype and on the device of `like`.

        Args:
            positions: (n,) int64, the same on all axes, or (axis_count, n).
            like: any tensor of the wanted dtype and device.
        """
        if self.axis_count == 1:
            ids = positions.view(1, -1)
        else:
            ids = positions.expand(self.axis_count, -1)[:, None]
        with torch.inference_mode():
            cos, sin = self._module(like, ids.to(like.device))
        if self._scaling != 1.0:
            cos, sin = cos / self._scaling, sin / self._scaling
        return RopeTables(cos, sin)

    def apply(self, states: Tensor, tables: RopeTables) -> Tensor:
        """Return the states, (1, heads, n, head_dim), rotated; a new tensor."""
        # The family's function rotates q and k together: hand it no heads in place of k.
        rotated, _ = self._rotate(states, states[:, :0], tables.cos, tables.sin)
        return rotated


_Rotation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _rotation_of(text_model: Any) -> _Rotation:
    """Return the family's own rotation where its module has one, else the common one."""
    module = sys.modules[type(text_model.layers[0].self_attn).__module__]
    rotation: _Rotation = getattr(module, "apply_rotary_pos_emb", _rotate_halves)
    return rotation


def _rotate_halves(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate_one(query, cos, sin), _rotate_one(key, cos, sin)


def _rotate_one(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
