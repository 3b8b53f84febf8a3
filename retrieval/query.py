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


MAX_TOKEN_QUERIES = 64

Pooling = Literal["mean", "mean_and_tokens"]
"""How a question's tokens search: by their mean; or half by that, and half each for itself, so that
of two things a question names neither drowns the other."""


def pooled_queries(
    question_queries: NDArray[np.floating], kv_head_count: int, pooling: Pooling
) -> NDArray[np.float32]:
    """Return (n, kv_head_count * head_dim), the vectors that search: the mean, then each token.

    Each costs a pass over the index. Of a question of more than `MAX_TOKEN_QUERIES` tokens, runs
    of neighbours search together.

    Args:
        question_queries: (head_count, token_count, head_dim), before RoPE.
        kv_head_count: divides head_count.
        pooling: of the tokens; by "mean" alone n is 1.

    Raises:
        ValueError: as for `rekv_query`.
    """
    queries = [rekv_query(question_queries, kv_head_count)]
    if pooling == "mean_and_tokens":
        count = min(question_queries.shape[1], MAX_TOKEN_QUERIES)
        tokens = np.array_split(question_queries, count, axis=1)
        queries += [rekv_query(token, kv_head_count) for token in tokens]
    return np.stack(queries)


def pooled_scores(scores: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Return one score a unit, (units,), of (n, units) by the vectors of `pooled_queries`.

    Of several, each vector's softmax over the units is averaged, the first counting as much as all
    others together; the result is such a score again, whose softmax is that average.

    Args:
        scores: inner products.
        scale: multiplies them before a softmax, as in `fusion.softmax_mean`.
    """
    if len(scores) == 1:
        only: NDArray[np.float32] = scores[0]
        return only
    logs = scores.astype(np.float64) * scale
    logs -= logs.max(axis=1, keepdims=True)
    shares = np.exp(logs)
    shares /= shares.sum(axis=1, keepdims=True)
    mean = shares[0] / 2 + shares[1:].mean(axis=0) / 2
    with np.errstate(divide="ignore"):  # a unit that was dropped has no share: -inf stays
        pooled: NDArray[np.float32] = (np.log(mean) / scale).astype(np.float32)
    return pooled
