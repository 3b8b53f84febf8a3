"""LLaVA-OneVision: one frame is one unit, pooled to a square grid, 1-D positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svc.engine.adapters.base import StreamShape, WholeUnit
from svc.engine.decoder import Decoder
from svc.engine.errors import UnsupportedModelError
from svc.engine.layout import Cells, grid_cells
from svc.engine.preprocess import PixelRules


class LlavaOnevisionAdapter:
    """Frames and questions of a LLaVA-OneVision checkpoint.

    The family's one `image_newline` embedding follows the whole video. A stream has no end, so
    it is stripped from the features and put at the head of every question segment instead.
    """

    family = "llava_onevision"
    frames_per_unit = 1
    question_lead_count = 1
    advance = (1,)
    overhang = 0

    def __init__(
        self, path: str, model: Any, decoder: Decoder, rules: PixelRules, tokenizer: Any
    ) -> None:
        preprocessor = rules.at_fixed_size()
        config: Any = model.config
        vision: Any = config.vision_config
        if config.vision_feature_select_strategy != "full":
            raise UnsupportedModelError(
                path,
                f"vision_feature_select_strategy {config.vision_feature_select_strategy!r}, "
                "allowed is 'full'",
            )
        size = (preprocessor.height, preprocessor.width)
        if size != (vision.image_size, vision.image_size):
            raise UnsupportedModelError(
                path, f"frames of {size} for a vision tower of {vision.image_size} pixels square"
            )
        self.frame_height, self.frame_width = size
        patch_count = int(vision.image_size) // int(vision.patch_size)
        side = -(-patch_count // 2)  # the stock pooling halves, rounding up
        self.grid = (side, side)
        self.tokens_per_unit = self.position_span = side * side
        self.video_token_id = int(config.video_token_id)
        self.video_mark: tuple[int, ...] = (self.video_token_id,)
        self._cells = grid_cells(self.grid)
        self._preprocessor = preprocessor
        self._decoder = decoder
        self._model: Any = model.model

    def shaped(self, stream: StreamShape) -> Self:
        """Return itself: frames of any shape become the one square that the tower takes."""
        return self

    def preprocess(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Return the pixels of the frames, (units, 1, 3, height, width) float32 on the CPU."""
        return self._preprocessor(frames)[:, None]

    def shown(self, pixels: Tensor) -> Tensor:
        """Return pixels of `preprocess` as values in [0, 1]."""
        return self._preprocessor.shown(pixels)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, times_s: Sequence[float]) -> list[WholeUnit]:
        """Return the units; nothing is said of their times."""
        if self._model.vision_tower is None:
            raise RuntimeError("the model was loaded with vision=False: it cannot encode frames")
        video = pixels.to(device=self._decoder.device, dtype=self._decoder.dtype)
        # as one video of one batch: (1, units, 3, height, width)
        features: Tensor = self._model.get_video_features(video[:, 0][None]).pooler_output
        by_unit = features[0, :-1].reshape(pixels.shape[0], self.tokens_per_unit, -1)
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
        """Return (1, n): places in reading order."""
        rows, columns = cells.astype(np.int64).T
        positions: NDArray[np.int64] = rows * self.grid[1] + columns
        return positions[None]

    def question_offset(self, spans: NDArray[np.int64]) -> int:
        """Return the end of the last unit."""
        return int(spans.sum())

    @torch.inference_mode()
    def question_embeds(self, token_ids: Sequence[int]) -> Tensor:
        """Return (1 + len(token_ids), hidden): the newline embedding, then the tokens."""
        newline: Tensor = self._model.image_newline
        lead = newline[None].to(device=self._decoder.device, dtype=self._decoder.dtype)
        return torch.cat([lead, self._decoder.embed(token_ids)])
