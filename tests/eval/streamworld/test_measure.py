"""The measuring pass is the streaming pass: a window over frames, then questions over memory."""

from __future__ import annotations

import pytest
import torch

from eval.streamworld.exam import make_exam
from eval.streamworld.forward import encode_video
from eval.streamworld.measure import Serving, encode_stream, exam_features, grade
from eval.streamworld.model import build, config
from eval.streamworld.vocabulary import PREFIX_IDS
from eval.streamworld.wording import KINDS

MODEL = build(
    config(hidden=32, layers=3, heads=4, kv_heads=2, mlp=32, vision_hidden=16, vision_layers=1,
           vision_mlp=16, vision_heads=1),
    seed=1,
)  # fmt: skip
with torch.no_grad():
    for _name, _parameter in MODEL.named_parameters():
        if "proj" in _name and _parameter.ndim == 2:
            _parameter.mul_(5)


@torch.no_grad()
def test_within_one_window_streaming_equals_plain_causal_attention() -> None:
    features = exam_features(MODEL, make_exam(seed=0, duration_s=120.0), None)[:12]
    prefix = MODEL.model.language_model.embed_tokens(torch.tensor(PREFIX_IDS))
    whole = encode_video(MODEL, torch.cat((prefix, features.flatten(0, 1)))[None], None)
    for window_frames in (12, 20):
        for streamed, plain in zip(
            encode_stream(MODEL, features, window_frames), whole, strict=True
        ):
            torch.testing.assert_close(streamed.keys, plain.keys, atol=2e-5, rtol=0)
            torch.testing.assert_close(streamed.values, plain.values, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("changed", [0, 5, 11])
def test_a_frame_reaches_its_own_window_through_one_layer_and_no_further(changed: int) -> None:
    features = exam_features(MODEL, make_exam(seed=0, duration_s=120.0), None)[:24]
    other = features.clone()
    other[changed] += 1
    window, tokens = 4, features.shape[1]
    before, after = (encode_stream(MODEL, f, window)[1].keys for f in (features, other))
    moved = (before - after)[0, len(PREFIX_IDS) :].view(24, tokens, -1).abs().amax((1, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(changed, changed + window))


def test_every_question_of_an_exam_is_graded_through_the_codec() -> None:
    exam = make_exam(seed=1, duration_s=150.0)
    graded = grade(MODEL, exam, Serving(crf=28))
    assert {one.question.kind for one in graded} == set(KINDS)
    assert [one.question for one in graded] == list(exam.questions)
