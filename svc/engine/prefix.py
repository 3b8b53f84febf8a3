"""The prompt prefix: encoded once per model, the attention sinks of every stream and answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svc.engine.attention import core
from svc.engine.decoder import Decoder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixKV:
    """Keys and values of the prefix, which takes positions [0, token_count)."""

    keys: Tensor
    """(layers, kv_heads, token_count, head_dim), before RoPE, on the model's device."""
    values: Tensor
    """Shaped like keys."""

    @property
    def token_count(self) -> int:
        """Tokens, and equally positions, of the prefix."""
        return self.keys.shape[2]

    def __repr__(self) -> str:
        return f"PrefixKV(keys={tuple(self.keys.shape)}, dtype={self.keys.dtype})"


def encode_prefix(decoder: Decoder, embeds: Tensor) -> PrefixKV:
    """Run the prefix, (n, hidden_size), through the text model and keep what its layers made."""
    session = _PrefixSession(decoder, embeds)
    decoder.run(embeds, session)
    return PrefixKV(keys=torch.cat(session.keys), values=torch.cat(session.values))


class _PrefixSession:
    """Plain causal attention from position 0 on, keeping every layer's keys and values."""

    def __init__(self, decoder: Decoder, embeds: Tensor) -> None:
        self._rope = decoder.rope
        positions = torch.arange(embeds.shape[0], device=embeds.device)
        self._tables = decoder.rope.tables(positions, embeds)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        self.keys.append(key)
        self.values.append(value)
        rotate = self._rope.apply
        return core(rotate(query, self._tables), rotate(key, self._tables), value, scaling=scaling)
