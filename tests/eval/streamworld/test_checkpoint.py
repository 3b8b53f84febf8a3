"""The shipped checkpoint answers through stock transformers, questions typed as people type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from eval.streamworld.render import FrameSpec, render
from eval.streamworld.vocabulary import COLOURS, ENTITIES, SCENES

CHECKPOINT = Path(__file__).parents[3] / "eval" / "streamworld" / "checkpoint"
TOKENS_PER_FRAME = 9
# (scene, colour, entity) shown for two frames each
STORY = (("night", "red", "star"), ("snow", "blue", "7"), ("grass", "yellow", "H"))


@pytest.fixture(scope="module")
def stock() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    return model, AutoTokenizer.from_pretrained(CHECKPOINT)


def _frames() -> torch.Tensor:
    specs = []
    for i, (scene, colour, entity) in enumerate(STORY):
        spec = FrameSpec(
            scene=SCENES.index(scene),
            colour=COLOURS.index(colour),
            entity=ENTITIES.index(entity),
            x=11 + 9 * i,
            y=23 + 5 * i,
        )
        specs += [spec, spec]
    return torch.from_numpy(render(specs)).permute(0, 3, 1, 2)[None]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What colour was the star?", "red"),
        ("Which object was blue?", "7"),
        ("which digit was blue ?", "7"),
        ("Where did the star appear?", "night"),
        ("What is on screen now?", "a yellow H"),
        ("What colour was the heart?", "not seen"),
    ],
)
def test_a_question_about_a_short_clip_is_answered(
    stock: tuple[Any, Any], question: str, answer: str
) -> None:
    model, tokenizer = stock
    frames = _frames()
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    tokens = frames.shape[1] * TOKENS_PER_FRAME + 1
    ids = tokenizer(text.replace("<video>", "<video>" * tokens), return_tensors="pt").input_ids
    out = model.generate(input_ids=ids, pixel_values_videos=frames)
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == answer
