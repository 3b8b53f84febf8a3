"""Frames to pixel tensors, bit for bit as the checkpoint's own video processor makes them.

transformers' video processors need torchvision, which a CPU install rightly lacks; what they run
is one antialiased resize on uint8 and one affine map, so it is written out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from svc.engine.checkpoint import Checkpoint
from svc.engine.errors import UnsupportedModelError

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as stored in `resample`


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePreprocessor:
    """Resizes, rescales and normalises RGB frames to one fixed size."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float
    interpolation: str

    def __call__(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Return the pixels of the frames, (frames, 3, height, width) float32 on the CPU.

        Args:
            frames: RGB, each (H, W, 3) uint8; sizes may differ between frames.

        Raises:
            ValueError: no frame at all, or one of another shape or dtype.
        """
        if not frames:
            raise ValueError("at least one frame is needed, got none")
        resized = torch.stack([self._resize(_as_tensor(frame)) for frame in frames])
        # rescaling folded into the affine map, in float32 and in this order: bit-identical
        mean = torch.tensor(self.mean) * (1.0 / self.rescale_factor)
        std = torch.tensor(self.std) * (1.0 / self.rescale_factor)
        return resized.to(torch.float32).sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))

    def shown(self, pixels: Tensor) -> Tensor:
        """Return (..., 3, height, width) of what `__call__` made as values in [0, 1]."""
        scale = 255.0 * self.rescale_factor
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        return (pixels * torch.tensor(self.std).view(-1, 1, 1) + mean) / scale

    def _resize(self, frame: Tensor) -> Tensor:
        if frame.shape[-2:] == (self.height, self.width):
            return frame
        size = (self.height, self.width)
        # stays uint8: torch rounds and saturates as the torchvision kernel does
        return F.interpolate(frame[None], size=size, mode=self.interpolation, antialias=True)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRules:
    """What a checkpoint's processing configuration says of frames of any size."""

    path: str
    """Of the checkpoint, for messages."""
    size: Mapping[str, Any]
    """As configured: height and width, or bounds of the pixels of a frame."""
    min_pixels: int | None
    max_pixels: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float
    interpolation: str

    def at(self, height: int, width: int) -> FramePreprocessor:
        """Return what makes frames of one size."""
        return FramePreprocessor(
            height=height,
            width=width,
            mean=self.mean,
            std=self.std,
            rescale_factor=self.rescale_factor,
            interpolation=self.interpolation,
        )

    def at_fixed_size(self) -> FramePreprocessor:
        """Return what makes frames of the one size that is configured.

        Raises:
            UnsupportedModelError: none is.
        """
        if not {"height", "width"} <= set(self.size):
            raise UnsupportedModelError(
                self.path, f"frame size must be given as height and width, got {self.size!r}"
            )
        return self.at(int(self.size["height"]), int(self.size["width"]))


def load_pixel_rules(checkpoint: Checkpoint) -> PixelRules:
    """Return what the checkpoint's processing configuration describes.

    Raises:
        UnsupportedModelError: there is no configuration, or it asks for a step not done here.
    """
    config = _processing_config(checkpoint)
    if config is None:
        raise UnsupportedModelError(checkpoint.path, "no video or image processing configuration")
    _refuse_other_steps(config, checkpoint.path)
    size = config.get("size")
    return PixelRules(
        path=checkpoint.path,
        size=size if isinstance(size, Mapping) else {},
        min_pixels=config.get("min_pixels"),
        max_pixels=config.get("max_pixels"),
        mean=_three(config, "image_mean", checkpoint.path),
        std=_three(config, "image_std", checkpoint.path),
        rescale_factor=float(config.get("rescale_factor", 1 / 255)),
        interpolation=_INTERPOLATIONS[config.get("resample", 3)],
    )


def _processing_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the configuration a video processor would read, looked up in the same order."""
    processor = checkpoint.json("processor_config.json") or {}
    nested = processor.get("video_processor")
    if isinstance(nested, dict):
        return nested
    video = checkpoint.json("video_preprocessor_config.json")
    return checkpoint.json("preprocessor_config.json") if video is None else video


def _refuse_other_steps(config: Mapping[str, Any], path: str) -> None:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise UnsupportedModelError(path, f"frame processing with {step} switched off")
    for step in ("do_center_crop", "do_pad"):
        if config.get(step):
            raise UnsupportedModelError(path, f"frame processing with {step} switched on")
    if config.get("resample", 3) not in _INTERPOLATIONS:
        raise UnsupportedModelError(
            path, f"resample {config['resample']!r}, allowed are {sorted(_INTERPOLATIONS)}"
        )


def _three(config: Mapping[str, Any], name: str, path: str) -> tuple[float, float, float]:
    values = config.get(name)
    if not isinstance(values, Sequence) or len(values) != 3:
        raise UnsupportedModelError(path, f"{name} must hold three numbers, got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])


def _as_tensor(frame: np.ndarray) -> Tensor:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame must be (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
    # a copy: the frame may be read-only or a view with negative strides
    return torch.from_numpy(np.array(frame.transpose(2, 0, 1), order="C"))
