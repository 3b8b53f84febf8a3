"""The vector that a question searches a layer's mean keys with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rekv_query(question_queries: NDArray[np.floating], kv_head_count: int) -> NDArray[np.float32]:
    """Return the question's query against mean keys: mean over tokens, summed over each group.

    Its inner product with a unit's mean key (kv_head_count * head_dim) equals ReKV's score, the
    sum over all query heads of (mean query) . (mean key of that head), where keys are repeated
    for the heads of a group: sum_h q_h . k_g(h) = sum_g (sum over h in g of q_h) . k_g.

    Args:
        question_queries: (head_count, token_count, head_dim), before RoPE.
        kv_head_count: divides head_count; heads of one group are neighbours.

    Returns:
        (kv_head_count * head_dim,) float32.

    Raises:
        ValueError: no tokens, or kv_head_count does not divide head_count.

    Source: the score is ReKV's, Di et al., arXiv:2503.00540; the reduction is ours.
    """
    head_count, token_count, head_dim = question_queries.shape
    if token_count < 1 or head_count % kv_head_count:
        raise ValueError(
            f"got {token_count} tokens and {head_count} heads over {kv_head_count} kv heads; "
            "needed: at least one token, and whole groups"
        )
    mean = question_queries.astype(np.float64).mean(axis=1)  # float64: the order does not matter
    groups = mean.reshape(kv_head_count, head_count // kv_head_count, head_dim)
    query: NDArray[np.float32] = groups.sum(axis=1).reshape(-1).astype(np.float32)
    return query
