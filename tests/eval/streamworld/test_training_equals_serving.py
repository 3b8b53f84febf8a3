"""The training forward computes what the stock model computes when it serves."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from eval.streamworld.augment import Augmenter
from eval.streamworld.batches import Batch, BatchPlan, make_batch
from eval.streamworld.forward import frame_features
from eval.streamworld.losses import run_batch
from eval.streamworld.model import TOKENS_PER_FRAME, build, config
from eval.streamworld.seeds import generator
from eval.streamworld.sequences import IGNORED, segments_of
from eval.streamworld.vocabulary import PREFIX_IDS, VIDEO_ID
from eval.streamworld.wording import KINDS
from eval.streamworld.world import Pace

FRAMES = 5


@pytest.fixture(scope="module")
def model() -> LlavaOnevisionForConditionalGeneration:
    made = build(
        config(hidden=64, layers=3, heads=4, kv_heads=2, mlp=96, vision_hidden=32,
               vision_layers=2, vision_mlp=48, vision_heads=2),
        seed=3,
    )  # fmt: skip
    with torch.no_grad():  # at the usual small scale broken attention would hardly show
        for name, parameter in made.named_parameters():
            if "proj" in name and parameter.ndim == 2:
                parameter.mul_(4)
            if "bias" in name:
                parameter.normal_(std=0.2)
    return made


def _batch(picked: int) -> Batch:
    plan = BatchPlan(
        clips=2, frames=FRAMES, questions=8, pace=Pace(duration=(1, 3), gap=(0, 1)),
        kinds=dict.fromkeys(KINDS, 1.0), picked=picked,
    )  # fmt: skip
    return make_batch(plan, grid_px=8, augment=Augmenter(seed=0), rng=generator("tests", 5))


def _served_logits(
    model: LlavaOnevisionForConditionalGeneration, batch: Batch, n: int
) -> tuple[torch.Tensor, list[int], int]:
    """The stock model's logits on the whole prompt of question n with its answer."""
    question = batch.questions[n]
    frames = question.asked_at + 1
    video = [VIDEO_ID] * (frames * TOKENS_PER_FRAME + 1)
    (segment,) = segments_of([question])
    ids = [*PREFIX_IDS, *video, *segment.ids[1:]]
    pixels = batch.images[batch.image_of[int(batch.clip[n]), :frames]].permute(0, 3, 1, 2)
    logits = model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels[None]).logits[0]
    return logits, segment.targets, len(ids)


@torch.no_grad()
def test_training_logits_are_the_stock_models_logits_at_the_positions_that_predict_the_answer(
    model: LlavaOnevisionForConditionalGeneration,
) -> None:
    batch = _batch(FRAMES)
    logits, _ = run_batch(model, batch, frame_features(model, batch.images))
    labelled = batch.tokens.labels != IGNORED
    start = 0
    for n in range(len(batch.questions)):
        count = int(labelled[n].sum())
        trained, target = logits[start : start + count], batch.tokens.labels[n][labelled[n]]
        served, answer, length = _served_logits(model, batch, n)
        # the token after position p is predicted at p: the answer's end has no input position
        expected = served[length - len(answer) : length]
        assert target.tolist() == answer
        torch.testing.assert_close(trained, expected, atol=2e-5, rtol=0)
        start += count
    assert start == len(logits)


@torch.no_grad()
def test_a_layer_attends_to_the_picked_frames_only(
    model: LlavaOnevisionForConditionalGeneration,
) -> None:
    batch, smaller = _batch(FRAMES), _batch(2)
    features = frame_features(model, batch.images)
    all_frames, _ = run_batch(model, batch, features)
    two_frames, _ = run_batch(model, smaller, features)
    assert not torch.allclose(all_frames, two_frames, atol=1e-3)
