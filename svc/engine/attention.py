"""The one attention function: hands every layer's pre-RoPE q, k, v to the session of the call.

The text model runs with its attention implementation set to `NAME` and with all position ids
zero. At position 0 the model's own rotation is the identity, so q and k arrive here before RoPE;
the session, which travels as keyword `KEYWORD` from the text model's call down to here, decides
which keys are attended, at which positions. No mask function is registered for `NAME`: that is
what keeps transformers from building masks of its own.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "lookback"
"""Must not contain "flash", "sdpa" or "flex": transformers tests for these as substrings."""
KEYWORD = "lookback"


class AttentionSession(Protocol):
    """Attends for one call of the text model. Must not have a `.to` attribute: accelerate's
    hooks would call it."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Return the attention output of one layer for the tokens of this call.

        Args:
            layer: index of the layer, from 0; called once per layer, ascending.
            query: (1, heads, n, head_dim), before RoPE.
            key: (1, kv_heads, n, head_dim), before RoPE.
            value: (1, kv_heads, n, head_dim).
            scaling: the model's own factor on q @ k; None means 1 / sqrt(head_dim).

        Returns:
            (1, n, heads, head_dim).
        """
        ...


def register() -> None:
    """Make `NAME` an attention implementation of transformers. May be called again."""
    AttentionInterface.register(NAME, _entry)


def _entry(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    session: AttentionSession | None = kwargs.get(KEYWORD)
    if session is None:
        raise RuntimeError(f"attention {NAME!r} was called without a {KEYWORD}= session")
    layer: Any = module.layer_idx
    return session.attend(layer, query, key, value, scaling), None


def lower_right_mask(query_count: int, key_count: int, device: torch.device) -> Tensor:
    """Return the causal mask of queries that are the last of the keys.

    Returns:
        (query_count, key_count) bool, True where attended.
    """
    last = torch.arange(key_count - query_count, key_count, device=device)
    return torch.arange(key_count, device=device)[None] <= last[:, None]


def core(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, mask: Tensor | None = None
) -> Tensor:
    """Attend, with q and k rotated already.

    Never through transformers' own sdpa wrapper: without a mask it crops the keys to the first
    `query_count` of them.

    Args:
        query: (batch, heads, query_count, head_dim).
        key: (batch, kv_heads, key_count, head_dim), kv_heads dividing heads.
        value: like key.
        scaling: factor on q @ k; None means 1 / sqrt(head_dim).
        mask: (query_count, key_count) bool, True where attended. None: the queries are the last
            of the keys, causal.

    Returns:
        (batch, query_count, heads, head_dim), contiguous.
    """
    query_count, key_count = query.shape[2], key.shape[2]
    if mask is None and query_count > 1:
        mask = lower_right_mask(query_count, key_count, query.device)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous()
