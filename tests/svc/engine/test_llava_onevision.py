"""Units of the family's adapter are what the stock model makes of the whole video."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from svc.engine.model import LoadedModel
from tests.svc.engine.streams import frames
from tests.svc.engine.tiny import TOKENS_PER_UNIT

Models = Callable[[str], LoadedModel]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_features_one_unit_at_a_time_equal_the_stock_features_of_the_whole_video(
    tiny_model: Models, dtype: str, tolerance: float
) -> None:
    model = tiny_model(dtype)
    pixels = model.adapter.preprocess(frames(7))
    with torch.inference_mode():
        video = pixels[:, 0][None].to(model.decoder.dtype)
        stock = model.hf_model.model.get_video_features(video).pooler_output[0]
    singly = torch.stack([model.adapter.encode(pixels[i : i + 1], [i])[0].embeds for i in range(7)])
    together = torch.stack([unit.embeds for unit in model.adapter.encode(pixels, range(7))])
    assert singly.shape == (7, TOKENS_PER_UNIT, model.decoder.hidden_size)
    assert stock.shape[0] == 7 * TOKENS_PER_UNIT + 1
    for features in (singly, together):
        assert float((features.flatten(0, 1) - stock[:-1]).abs().max()) < tolerance
    assert float((singly[0] - singly[1]).abs().max()) > 0.1


def test_the_question_segment_begins_with_the_newline_that_ends_the_video(
    tiny_model: Models,
) -> None:
    model = tiny_model("float32")
    with torch.inference_mode():
        video = model.adapter.preprocess(frames(1))[:, 0][None]
        newline = model.hf_model.model.get_video_features(video).pooler_output[0, -1]
    segment = model.adapter.question_embeds([5, 7])
    assert model.adapter.question_lead_count == 1
    assert torch.equal(segment[0], newline)
    assert torch.equal(segment[1:], model.decoder.embed([5, 7]))


def test_cells_and_positions_follow_reading_order(tiny_model: Models) -> None:
    adapter = tiny_model("float32").adapter
    cells = adapter.whole_cells(TOKENS_PER_UNIT)
    assert cells.dtype == np.uint16
    assert cells.tolist() == [[row, column] for row in range(3) for column in range(3)]
    assert adapter.local_positions(cells, np.array([9])).tolist() == [list(range(9))]
    assert adapter.position_span == adapter.tokens_per_unit == TOKENS_PER_UNIT
