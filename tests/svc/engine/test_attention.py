"""The core attends as the definition says, and the session gets q and k before RoPE."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from svc.engine.attention import NAME, core, register
from svc.engine.model import LoadedModel

Models = Callable[[str], LoadedModel]


def by_definition(q: Tensor, k: Tensor, v: Tensor, scaling: float, seen: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize(("query_count", "key_count"), [(1, 1), (1, 7), (4, 4), (3, 8)])
@pytest.mark.parametrize("kv_head_count", [1, 2, 6])
def test_core_attends_causally_with_the_queries_last(
    query_count: int, key_count: int, kv_head_count: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 6, query_count, 8, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, 1, kv_head_count, key_count, 8, dtype=q.dtype, generator=generator)
    seen = torch.ones(query_count, key_count, dtype=torch.bool).tril(key_count - query_count)
    expected = by_definition(q, k, v, 0.3, seen)
    torch.testing.assert_close(core(q, k, v, scaling=0.3), expected, rtol=0, atol=1e-12)


def test_core_obeys_an_explicit_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 3, 8, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, 1, 2, 5, 8, dtype=q.dtype, generator=generator)
    seen = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    expected = by_definition(q, k, v, 8**-0.5, seen)
    actual = core(q, k, v, scaling=None, mask=seen)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


class _Spy:
    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        assert layer == len(self.seen)
        self.seen.append((query, key))
        return core(query, key, value, scaling=scaling)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_queries_and_keys_arrive_before_rope_bit_for_bit(tiny_model: Models, dtype: str) -> None:
    model = tiny_model(dtype)
    embeds = model.decoder.embed(range(12))
    spy = _Spy()
    model.decoder.run(embeds, spy)
    block = model.decoder.text_model.layers[0]
    with torch.inference_mode():
        normed = block.input_layernorm(embeds[None])
        query = block.self_attn.q_proj(normed).view(1, 12, 4, 16).transpose(1, 2)
        key = block.self_attn.k_proj(normed).view(1, 12, 2, 16).transpose(1, 2)
    assert len(spy.seen) == model.layer_count
    assert torch.equal(spy.seen[0][0], query)
    assert torch.equal(spy.seen[0][1], key)


def test_a_call_without_a_session_is_an_error_not_a_guess(tiny_model: Models) -> None:
    model = tiny_model("float32")
    register()  # again: does no harm
    with pytest.raises(RuntimeError, match=f"{NAME}.*without"):
        model.decoder.text_model(inputs_embeds=model.decoder.embed([1, 2])[None], use_cache=False)
