"""How much neighbouring layers agree, on scores made up for it and on the built-in model."""

import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.layer_overlap import _CHECKPOINT, measure_overlap, overlap


def test_overlap_is_the_share_that_the_layer_before_picked_too() -> None:
    scores = [
        torch.tensor([5.0, 4.0, 3.0, 0.0, 0.0]),
        torch.tensor([5.0, 4.0, 0.0, 3.0, 0.0]),
        torch.tensor([0.3, 0.2, 0.0, 1.0, 2.0]),
    ]
    assert overlap(scores, 3) == pytest.approx([2 / 3, 2 / 3])
    assert overlap(scores, 2) == [1.0, 0.0]
    assert overlap([scores[0]], 2) == []


def test_the_built_in_model_gives_a_share_for_every_pair_of_layers() -> None:
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(_CHECKPOINT).eval()
    pairs, questions = measure_overlap(
        model, seed=1, duration_s=240.0, questions_per_kind=1, count=7
    )
    assert len(pairs) == model.config.text_config.num_hidden_layers - 1
    assert questions > 3
    assert all(0.0 < share < 1.0 for share in pairs)
