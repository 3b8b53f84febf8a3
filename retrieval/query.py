"""The vector that a question searches a layer's mean keys with."""

from __future__ import annotations

from typing import Literal

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


Pooling = Literal["mean", "last", "max", "tokens", "both"]
"""How a question's tokens search: by their mean; the last alone; each, a unit by its best; each, a
unit by the mean of its softmax scores; or half that and half by their mean."""


def pooled_queries(
    question_queries: NDArray[np.floating], kv_head_count: int, pooling: Pooling
) -> NDArray[np.float32]:
    """Return (n, kv_head_count * head_dim), the vectors that search: one, or one for each token.

    Args:
        question_queries: (head_count, token_count, head_dim), before RoPE.
        kv_head_count: divides head_count.
        pooling: of the tokens.
    """
    if pooling == "mean":
        return rekv_query(question_queries, kv_head_count)[None]
    if pooling == "last":
        return rekv_query(question_queries[:, -1:], kv_head_count)[None]
    tokens = np.split(question_queries, question_queries.shape[1], axis=1)
    queries = [rekv_query(token, kv_head_count) for token in tokens]
    if pooling == "both":
        queries.insert(0, rekv_query(question_queries, kv_head_count))
    return np.stack(queries)


def pooled_scores(
    scores: NDArray[np.float32], pooling: Pooling, scale: float
) -> NDArray[np.float32]:
    """Return (units,) from (n, units), the scores of `pooled_queries`.

    `scale` makes scores logarithms of softmax scores, as in `fusion.softmax_mean`.
    """
    if len(scores) == 1:
        only: NDArray[np.float32] = scores[0]
        return only
    if pooling == "max":
        best: NDArray[np.float32] = scores.max(axis=0)
        return best
    logs = scores.astype(np.float64) * scale
    logs -= logs.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    shares = np.exp(logs)
    if pooling == "both":
        mean = np.log(shares[0] / 2 + shares[1:].mean(axis=0) / 2)
    else:
        mean = np.log(shares.mean(axis=0))
    pooled: NDArray[np.float32] = (mean / scale).astype(np.float32)
    return pooled
