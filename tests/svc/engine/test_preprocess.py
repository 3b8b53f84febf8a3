"""Frames become the very pixels that the checkpoint's own video processor would make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svc.engine.checkpoint import Checkpoint
from svc.engine.errors import UnsupportedModelError
from svc.engine.preprocess import FramePreprocessor, load_pixel_rules
from tests.svc.engine.streams import frames

GOLDEN = Path(__file__).with_name("golden_frames.npz")
"""What transformers 5.23's LlavaOnevisionVideoProcessor, over torchvision 0.28, made of
`pattern(31, 42, 0)` and `(31, 42, 1)` ("shrunk") and of `pattern(14, 9, 2)` ("enlarged")."""


def pattern(height: int, width: int, seed: int) -> np.ndarray:
    """Return a frame that follows from a formula, with edges and gradients."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    value = x * x * 3 + y * y * 5 + x * y * 7 + c * 101 + seed * 31 + (x // 5) * (y // 3) * 17
    return (value % 256).astype(np.uint8)


@pytest.fixture
def preprocessor(tiny_path: Path) -> FramePreprocessor:
    return load_pixel_rules(Checkpoint(str(tiny_path))).at_fixed_size()


def test_pixels_equal_the_stock_video_processors_bit_for_bit(
    preprocessor: FramePreprocessor,
) -> None:
    with np.load(GOLDEN) as golden:
        shrunk = preprocessor([pattern(31, 42, 0), pattern(31, 42, 1)])
        assert torch.equal(shrunk, torch.from_numpy(golden["shrunk"]))
        enlarged = preprocessor([pattern(14, 9, 2)])
        assert torch.equal(enlarged, torch.from_numpy(golden["enlarged"]))


def test_a_frame_of_the_right_size_is_only_rescaled_and_normalised(
    preprocessor: FramePreprocessor,
) -> None:
    frame = pattern(20, 20, 5)
    expected = (frame / 255 - np.array(preprocessor.mean)) / np.array(preprocessor.std)
    np.testing.assert_allclose(
        preprocessor([frame])[0].permute(1, 2, 0).numpy(), expected, rtol=0, atol=2e-6
    )


def test_a_frame_is_processed_alike_alone_and_among_frames_of_other_sizes(
    preprocessor: FramePreprocessor,
) -> None:
    mixed = [*frames(2), pattern(14, 9, 2), pattern(20, 20, 1)[::-1]]
    together = preprocessor(mixed)
    for frame, pixels in zip(mixed, together, strict=True):
        assert torch.equal(preprocessor([frame])[0], pixels)


def test_a_read_only_frame_is_taken_and_left_alone(preprocessor: FramePreprocessor) -> None:
    frame = pattern(20, 20, 3)
    frame.setflags(write=False)
    preprocessor([frame])
    assert np.array_equal(frame, pattern(20, 20, 3))


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 3), np.float32),
    ],
    ids=["gray", "alpha", "float"],
)
def test_what_is_no_rgb_frame_is_refused(preprocessor: FramePreprocessor, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frame must be"):
        preprocessor([bad])
    with pytest.raises(ValueError, match="at least one frame"):
        preprocessor([])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_normalize": False}, "do_normalize"),
        ({"size": {"shortest_edge": 20}}, "height and width"),
        ({"resample": 1}, "resample"),
        ({"image_mean": None}, "image_mean"),
    ],
    ids=str,
)
def test_a_configuration_that_asks_for_more_is_refused(
    tiny_path: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    folder = shutil.copytree(tiny_path, tmp_path / "changed")
    file = folder / "video_preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UnsupportedModelError, match=reason):
        load_pixel_rules(Checkpoint(str(folder))).at_fixed_size()


def test_the_configuration_is_found_where_a_processor_may_keep_it(
    tiny_path: Path, tmp_path: Path
) -> None:
    expected = load_pixel_rules(Checkpoint(str(tiny_path))).at_fixed_size()
    folder = shutil.copytree(tiny_path, tmp_path / "moved")
    file = folder / "video_preprocessor_config.json"
    file.rename(folder / "preprocessor_config.json")
    assert load_pixel_rules(Checkpoint(str(folder))).at_fixed_size() == expected
    nested = {"video_processor": json.loads((folder / "preprocessor_config.json").read_text())}
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UnsupportedModelError, match="no video or image processing"):
        load_pixel_rules(Checkpoint(str(folder))).at_fixed_size()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert load_pixel_rules(Checkpoint(str(folder))).at_fixed_size() == expected
