"""Qwen2.5-VL: two frames are one unit; positions of time, height and width (M-RoPE).

All units begin at the same height and width, and time advances by what the unit lasts. After the
units the text goes on behind the largest position of any axis, as the family was trained;
transformers 5.23 and later put it elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svc.engine.adapters.base import USUAL_SHAPE, StreamShape, WholeUnit
from svc.engine.adapters.qwen_frames import PatchGeometry, unit_pixels
from svc.engine.decoder import Decoder
from svc.engine.layout import Cells, grid_cells
from svc.engine.preprocess import PixelRules


class Qwen25VLAdapter:
    """Frames and questions of a Qwen2.5-VL checkpoint, for sessions of one shape."""

    family = "qwen2_5_vl"
    question_lead_count = 0
    advance = (1, 0, 0)

    def __init__(
        self,
        path: str,
        model: Any,
        decoder: Decoder,
        rules: PixelRules,
        tokenizer: Any,
        stream: StreamShape = USUAL_SHAPE,
    ) -> None:
        vision: Any = model.config.vision_config
        self._path = path
        self._model: Any = model
        self._decoder = decoder
        self._rules = rules
        self._tokenizer: Any = tokenizer
        self._geometry = PatchGeometry.of(path, vision, rules)
        self.frames_per_unit = self._geometry.frames_per_unit
        self.grid = self._geometry.grid(stream)
        self.frame_height, self.frame_width = (n * self._geometry.token_px for n in self.grid)
        self.tokens_per_unit = self.grid[0] * self.grid[1]
        unit_s = self.frames_per_unit / stream.sample_fps
        self.position_span = max(1, round(float(vision.tokens_per_second) * unit_s))
        self.overhang = max(self.grid)
        self.video_token_id = int(model.config.video_token_id)
        self.video_mark: tuple[int, ...] = (self.video_token_id,)
        self._cells = grid_cells(self.grid)
        self._preprocess = rules.at(self.frame_height, self.frame_width)

    def shaped(self, stream: StreamShape) -> Self:
        """Return the adapter for sessions of another shape."""
        return type(self)(
            self._path, self._model, self._decoder, self._rules, self._tokenizer, stream
        )

    def preprocess(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Return the pixels of whole units, (units, 2, 3, height, width) float32 on the CPU."""
        return unit_pixels(self._preprocess, frames, self.frames_per_unit)

    def shown(self, pixels: Tensor) -> Tensor:
        """Return pixels of `preprocess` as values in [0, 1]."""
        return self._preprocess.shown(pixels)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, times_s: Sequence[float]) -> list[WholeUnit]:
        """Return the units; their times are told by positions alone."""
        if self._model.model.visual is None:
            raise RuntimeError("the model was loaded with vision=False: it cannot encode frames")
        on_device = pixels.to(device=self._decoder.device, dtype=self._decoder.dtype)
        patches, grid_thw = self._geometry.patches(on_device)
        (features,) = self._model.model.get_video_features(patches, grid_thw).pooler_output
        by_unit = features.view(len(pixels), self.tokens_per_unit, -1)
        return [
            WholeUnit(
                pixels=own, embeds=embeds, cells=self._cells, position_span=self.position_span
            )
            for own, embeds in zip(pixels, by_unit, strict=True)
        ]

    def whole_cells(self, token_count: int) -> Cells:
        """Return the grid's cells in reading order."""
        return self._cells

    def local_positions(self, cells: Cells, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (3, n): no time within a unit, row, column."""
        rows, columns = cells.astype(np.int64).T
        return np.stack([np.zeros_like(rows), rows, columns])

    def question_offset(self, spans: NDArray[np.int64]) -> int:
        """Return what follows the largest position of any axis."""
        if not len(spans):
            return 0
        return max(int(spans[:-1].sum()) + 1, *self.grid)

    @torch.inference_mode()
    def question_embeds(self, token_ids: Sequence[int]) -> Tensor:
        """Return (len(token_ids), hidden)."""
        return self._decoder.embed(token_ids)
