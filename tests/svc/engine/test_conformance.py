"""The probe lets the exact engine pass, and names the layer where a wrong one goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from svc.engine import attention, window_cache
from svc.engine.conformance import check_conformance
from svc.engine.errors import ConformanceError
from svc.engine.model import LoadedModel
from svc.engine.rope import Rope, RopeTables
from svc.engine.window_cache import WindowPass

Models = Callable[[str], LoadedModel]


def probe(model: LoadedModel) -> float:
    return check_conformance(model.hf_model, model.decoder)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float64", 1e-12), ("float32", 5e-6), ("float16", 1e-2), ("bfloat16", 5e-2)],
)
def test_the_engine_conforms(tiny_model: Models, dtype: str, expected: float) -> None:
    assert probe(tiny_model(dtype)) < expected


def test_the_model_is_left_with_the_engines_attention(tiny_model: Models) -> None:
    model = tiny_model("float32")
    probe(model)
    assert model.decoder.text_model.config._attn_implementation == attention.NAME


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_fault_in_one_layer_is_refused_by_name(
    tiny_model: Models, monkeypatch: pytest.MonkeyPatch, dtype: str, layer: int
) -> None:
    right = WindowPass.attend

    def wrong(self: WindowPass, at: int, q: Tensor, k: Tensor, v: Tensor, s: Any) -> Tensor:
        return right(self, at, q, k, v, 0.5 if at == layer else s)

    monkeypatch.setattr(WindowPass, "attend", wrong)
    with pytest.raises(ConformanceError) as caught:
        probe(tiny_model(dtype))
    assert caught.value.layer == f"layer {layer}"
    assert caught.value.difference > caught.value.tolerance


def test_positions_off_by_one_are_refused(
    tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = RopeTables.tail

    def wrong(self: RopeTables, count: int) -> RopeTables:
        return right(RopeTables(self.cos.roll(1, 1), self.sin.roll(1, 1)), count)

    monkeypatch.setattr(RopeTables, "tail", wrong)
    with pytest.raises(ConformanceError, match="layer 0"):
        probe(tiny_model("float32"))


def test_a_mask_without_causality_is_refused(
    tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(query_count: int, key_count: int, device: torch.device) -> Tensor:
        return torch.ones(query_count, key_count, dtype=torch.bool, device=device)

    monkeypatch.setattr(window_cache, "lower_right_mask", wrong)
    with pytest.raises(ConformanceError, match="layer 0"):
        probe(tiny_model("float32"))


def test_what_is_not_a_number_is_refused(
    tiny_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Rope.apply
    monkeypatch.setattr(Rope, "apply", lambda *given: right(*given) * torch.nan)
    with pytest.raises(ConformanceError):
        probe(tiny_model("float32"))
