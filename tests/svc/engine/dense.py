"""The sliding window written a second time, the slow way: dense, no cache, no eviction, no groups.

For every unit, all tokens of the whole stream are rotated to the places that this unit's own
window gives them, every score is computed, and everything the unit must not see is masked.
Rotation is written out from the definition, so nothing here is shared with the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svc.engine.encoder import UnitEmbeds, WindowConfig


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Ways to break the reference, to see that the comparison would notice."""

    mask_blind_to_window: bool = False
    position_offset: int = 0
    window_unit_offset: int = 0


def window_starts(units: Sequence[UnitEmbeds], config: WindowConfig) -> list[int]:
    """Return, per unit, the index of the first unit it sees: by trying every suffix."""
    starts = []
    for index in range(len(units)):
        fitting = [
            start
            for start in range(index + 1)
            if sum(len(u.positions) for u in units[start:index]) <= config.window_tokens
            and sum(u.position_span for u in units[start:index]) <= config.window_positions
        ]
        starts.append(min(fitting))
    return starts


class DenseWindow:
    """An attention session for one call with [prefix, every unit of the stream]."""

    def __init__(
        self,
        prefix_count: int,
        units: Sequence[UnitEmbeds],
        config: WindowConfig,
        rope_theta: float,
        faults: Faults,
    ) -> None:
        self._prefix_count = prefix_count
        self._theta = rope_theta
        self._faults = faults
        counts = [len(unit.positions) for unit in units]
        self._token_stops = [prefix_count + sum(counts[: i + 1]) for i in range(len(units))]
        self._token_starts = [prefix_count + sum(counts[:i]) for i in range(len(units))]
        self._offsets = [sum(u.position_span for u in units[:i]) for i in range(len(units))]
        stream = [u.positions + offset for u, offset in zip(units, self._offsets, strict=True)]
        self._stream_positions = torch.cat(stream)
        starts = window_starts(units, config)
        self._window_starts = [
            min(start + faults.window_unit_offset, index) for index, start in enumerate(starts)
        ]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        self.keys.append(key[0].transpose(0, 1))
        self.values.append(value[0].transpose(0, 1))
        group = query.shape[1] // key.shape[1]
        q, k, v = query[0], key[0].repeat_interleave(group, 0), value[0].repeat_interleave(group, 0)
        factor = q.shape[-1] ** -0.5 if scaling is None else scaling
        output = torch.empty_like(q)
        count = self._prefix_count
        causal = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()
        prefix_positions = torch.arange(count)
        rows = slice(0, count)
        output[:, rows] = self._dense(q, k, v, self._places(0), causal, factor)[:, rows]
        for index, (start, stop) in enumerate(
            zip(self._token_starts, self._token_stops, strict=True)
        ):
            first = self._window_starts[index]
            seen = causal.clone()
            if not self._faults.mask_blind_to_window:
                seen[:, count : self._token_starts[first]] = False
            places = self._places(self._offsets[first])
            places[:count] = prefix_positions + self._faults.position_offset
            output[:, start:stop] = self._dense(q, k, v, places, seen, factor)[:, start:stop]
        return output.transpose(0, 1)[None]

    def _places(self, window_position: int) -> Tensor:
        stream = self._stream_positions - window_position + self._prefix_count
        return torch.cat([torch.arange(self._prefix_count), stream])

    def _dense(
        self, q: Tensor, k: Tensor, v: Tensor, places: Tensor, seen: Tensor, factor: float
    ) -> Tensor:
        scores = self._rotated(q, places) @ self._rotated(k, places).transpose(1, 2) * factor
        return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v

    def _rotated(self, states: Tensor, places: Tensor) -> Tensor:
        """Rotate pairs (i, i + d/2) by place * theta^(-2i/d); angles in float32 as models do."""
        half = states.shape[-1] // 2
        exponents = torch.arange(half, dtype=torch.float32) / half
        frequencies = 1.0 / self._theta**exponents  # rounded as the models round it
        angles = places[:, None].float() * frequencies
        cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        a, b = states[..., :half], states[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
