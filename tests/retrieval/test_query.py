from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.fusion import softmax_mean
from retrieval.index import KeyIndexReader
from retrieval.index_writer import KeyIndexWriter
from retrieval.query import MAX_TOKEN_QUERIES, pooled_queries, pooled_scores, rekv_query


def rekv_score(queries: NDArray[np.floating], keys: NDArray[np.floating]) -> np.floating:
    """ReKV's own form: keys repeated for every query head, all heads flattened, one product.

    queries: (heads, question tokens, d); keys: (unit tokens, kv heads, d).
    """
    repeated = np.repeat(keys, queries.shape[0] // keys.shape[1], axis=1)
    return queries.mean(axis=1).reshape(-1) @ repeated.mean(axis=0).reshape(-1)


@settings(max_examples=80, deadline=None)
@given(
    kv_head_count=st.integers(1, 4),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 16),
    question_token_count=st.integers(1, 9),
    unit_token_counts=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_index_scores_equal_rekvs_formula(
    kv_head_count: int,
    group: int,
    head_dim: int,
    question_token_count: int,
    unit_token_counts: list[int],
    dtype: type[np.floating],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    generator = np.random.default_rng(seed)
    shape = (kv_head_count * group, question_token_count, head_dim)
    queries = generator.standard_normal(shape).astype(dtype)
    units = [
        generator.standard_normal((n, kv_head_count, head_dim)).astype(dtype)
        for n in unit_token_counts
    ]
    path: Path = tmp_path_factory.mktemp("index") / "index.rows"
    dim = kv_head_count * head_dim
    writer = KeyIndexWriter.create(path, layer_count=1, dim=dim, epoch=1, chunk_row_count=4)
    for keys in units:
        writer.append(keys.mean(axis=0).reshape(1, dim).astype(np.float32))
    query = rekv_query(queries, kv_head_count)
    scores = KeyIndexReader.open(path).scores(0, query, len(units))
    expected = [rekv_score(queries, keys) for keys in units]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_a_question_without_tokens_has_no_query() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        rekv_query(np.zeros((4, 0, 8)), 2)


def test_heads_must_form_whole_groups() -> None:
    with pytest.raises(ValueError, match="whole groups"):
        rekv_query(np.zeros((4, 2, 8)), 3)


def test_every_token_searches_beside_the_mean_and_long_questions_in_runs() -> None:
    queries = np.random.default_rng(0).standard_normal((4, 150, 8))
    alone = pooled_queries(queries, 2, "mean")
    np.testing.assert_array_equal(alone, rekv_query(queries, 2)[None])
    short = pooled_queries(queries[:, :5], 2, "mean_and_tokens")
    assert len(short) == 6
    np.testing.assert_array_equal(short[0], rekv_query(queries[:, :5], 2))
    np.testing.assert_array_equal(short[3], rekv_query(queries[:, 2:3], 2))
    assert len(pooled_queries(queries, 2, "mean_and_tokens")) == MAX_TOKEN_QUERIES + 1


@settings(max_examples=80, deadline=None)
@given(
    vector_count=st.integers(2, 9),
    unit_count=st.integers(1, 30),
    later_count=st.integers(0, 5),
    dropped_count=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_pooled_score_is_the_mean_of_softmax_scores(
    vector_count: int, unit_count: int, later_count: int, dropped_count: int, seed: int
) -> None:
    scale = 0.1
    generator = np.random.default_rng(seed)
    every = generator.normal(0, 60, (vector_count, unit_count + later_count)).astype(np.float32)
    scores = every[:, :unit_count]
    dropped_count = min(dropped_count, unit_count - 1)
    scores[:, :dropped_count] = -np.inf
    shares = np.exp(scores.astype(np.float64) * scale)
    shares /= shares.sum(axis=1, keepdims=True)
    expected = (shares[0] + shares[1:].mean(axis=0)) / 2
    pooled = pooled_scores(scores, scale)
    assert np.isneginf(pooled[:dropped_count]).all()  # what was dropped is still no candidate
    assert not np.isnan(pooled).any()
    np.testing.assert_allclose(softmax_mean([pooled], scale), expected, atol=1e-6)


def test_a_single_vectors_scores_stay_as_they_are() -> None:
    scores = np.array([[3.0, -np.inf, 1.5]], np.float32)
    np.testing.assert_array_equal(pooled_scores(scores, 0.1), scores[0])
