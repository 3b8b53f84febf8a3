"""What the Qwen-VL families share: frames sized by a budget of tokens and cut into patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svc.engine.adapters.base import StreamShape
from svc.engine.errors import UnsupportedModelError
from svc.engine.preprocess import FramePreprocessor, PixelRules

_MOST_ELONGATED = 200.0
"""Sides of a frame may differ by this factor, as the families' own processors have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGeometry:
    """How a checkpoint's vision tower cuts frames."""

    patch_px: int
    merge: int
    """Patches of a side that become one token."""
    frames_per_unit: int
    least_px: int
    """Pixels of a frame, at least, as the checkpoint's processor has it."""
    most_px: int

    @classmethod
    def of(cls, path: str, vision_config: Any, rules: PixelRules) -> PatchGeometry:
        """Read it from the checkpoint's configurations.

        Raises:
            UnsupportedModelError: the processor does not say how many pixels a frame may have.
        """
        size = rules.size
        least = rules.min_pixels or size.get("shortest_edge")
        most = rules.max_pixels or size.get("longest_edge")
        if not least or not most:
            raise UnsupportedModelError(path, f"no bounds of pixels per frame, size is {size!r}")
        return cls(
            patch_px=int(vision_config.patch_size),
            merge=int(vision_config.spatial_merge_size),
            frames_per_unit=int(vision_config.temporal_patch_size),
            least_px=int(least),
            most_px=int(most),
        )

    @property
    def token_px(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return self.patch_px * self.merge

    def grid(self, stream: StreamShape) -> tuple[int, int]:
        """Return rows and columns of tokens for frames of this shape, the shape about kept.

        Frames keep their own size where bounds and budget allow; the budget goes before the least
        that the checkpoint's processor would make of a frame.

        Raises:
            ValueError: the frames are too elongated, or have no pixels.
        """
        height, width = stream.frame_height, stream.frame_width
        if min(height, width) < 1 or max(height, width) > _MOST_ELONGATED * min(height, width):
            raise ValueError(
                f"sides of a frame must differ by a factor of at most {_MOST_ELONGATED:g}, "
                f"got {width}x{height}"
            )
        area = self.token_px**2
        most = min(self.most_px // area, stream.unit_tokens)
        least = min(self.least_px // area, most)
        rows, columns = (max(1, round(side / self.token_px)) for side in (height, width))
        if rows * columns > most:
            scale = math.sqrt(most * area / (height * width))
            rows, columns = (
                max(1, math.floor(side * scale / self.token_px)) for side in (height, width)
            )
        elif rows * columns < least:
            scale = math.sqrt(least * area / (height * width))
            rows, columns = (math.ceil(side * scale / self.token_px) for side in (height, width))
        return min(rows, most), min(columns, most)

    def patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Cut units into the rows that the vision tower takes.

        Args:
            pixels: (units, frames_per_unit, 3, height, width), sides whole tokens.

        Returns:
            patches: (units * patches, 3 * frames_per_unit * patch_px ** 2), those of one token
                together.
            grid_thw: (1, 3): units, and patches of the sides.
        """
        units, frames, channels, height, width = pixels.shape
        side, merge = self.patch_px, self.merge
        rows, columns = height // side, width // side
        cut = pixels.view(
            units, frames, channels,
            rows // merge, merge, side, columns // merge, merge, side,
        ).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # fmt: skip
        flat = cut.reshape(units * rows * columns, channels * frames * side * side)
        return flat, torch.tensor([[units, rows, columns]], device=pixels.device)


def unit_pixels(preprocess: FramePreprocessor, frames: Sequence[np.ndarray], each: int) -> Tensor:
    """Return (units, each, 3, height, width) of frames, `each` a unit.

    Raises:
        ValueError: the frames are not whole units.
    """
    if len(frames) % each:
        raise ValueError(f"frames must be whole units of {each}, got {len(frames)}")
    pixels = preprocess(frames)
    return pixels.view(-1, each, *pixels.shape[1:])
