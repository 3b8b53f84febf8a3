"""Qwen3-VL: a unit is its time as text, then two frames; interleaved M-RoPE; DeepStack.

Every unit is a little sequence of its own, `<12.3 seconds>`, a mark, the picture, a mark, and the
next one begins behind it on all axes. Features of earlier vision layers are added to the states
after the first text layers: they go where their tokens go.
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
from svc.engine.layout import TEXT_AFTER_ROW, TEXT_BEFORE_ROW, Cells, grid_cells
from svc.engine.preprocess import PixelRules

_LATEST_S = 99_999_999.9
"""Of this length are the longest timestamps that room is kept for: three years."""


class Qwen3VLAdapter:
    """Frames and questions of a Qwen3-VL checkpoint, for sessions of one shape."""

    family = "qwen3_vl"
    question_lead_count = 0
    advance = (1, 1, 1)
    overhang = 0

    def __init__(
        self,
        path: str,
        model: Any,
        decoder: Decoder,
        rules: PixelRules,
        tokenizer: Any,
        stream: StreamShape = USUAL_SHAPE,
    ) -> None:
        config: Any = model.config
        self._path = path
        self._model: Any = model
        self._decoder = decoder
        self._rules = rules
        self._tokenizer: Any = tokenizer
        self._geometry = PatchGeometry.of(path, config.vision_config, rules)
        self._mark_ids = int(config.vision_start_token_id), int(config.vision_end_token_id)
        self.frames_per_unit = self._geometry.frames_per_unit
        self.grid = self._geometry.grid(stream)
        self.frame_height, self.frame_width = (n * self._geometry.token_px for n in self.grid)
        self._cells = grid_cells(self.grid)
        most_before = len(self._ids_before(_LATEST_S))
        self.tokens_per_unit = most_before + len(self._cells) + 1
        self.position_span = most_before + max(self.grid) + 1
        self.video_token_id = int(config.video_token_id)
        # Released checkpoints were trained without the template's marks around the whole video.
        self.video_mark: tuple[int, ...] = (
            self._mark_ids[0],
            self.video_token_id,
            self._mark_ids[1],
        )
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
        """Return the units, each with its time as text before it."""
        if self._model.model.visual is None:
            raise RuntimeError("the model was loaded with vision=False: it cannot encode frames")
        on_device = pixels.to(device=self._decoder.device, dtype=self._decoder.dtype)
        patches, grid_thw = self._geometry.patches(on_device)
        seen = self._model.model.get_video_features(patches, grid_thw)
        levels = torch.stack([torch.cat(tuple(level)) for level in seen.deepstack_features])
        shape = len(pixels), len(self._cells), -1
        (features,) = seen.pooler_output
        return [
            self._unit(*parts)
            for parts in zip(
                pixels,
                times_s,
                features.view(*shape),
                levels.view(len(levels), *shape).transpose(0, 1),
                strict=True,
            )
        ]

    def whole_cells(self, token_count: int) -> Cells:
        """Return the cells of text before the picture, of the picture, and of the mark after."""
        before_count = token_count - len(self._cells) - 1
        before = np.stack([np.full(before_count, TEXT_BEFORE_ROW), np.arange(before_count)], axis=1)
        after = np.array([[TEXT_AFTER_ROW, 0]])
        return np.concatenate([before, self._cells, after]).astype(np.uint16)

    def local_positions(self, cells: Cells, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (3, n): text at one place on all axes, the picture spread from behind it."""
        rows, columns = cells.astype(np.int64).T
        before, after = rows == TEXT_BEFORE_ROW, rows == TEXT_AFTER_ROW
        first_tokens = np.cumsum(counts) - counts
        picture_start = np.repeat(np.add.reduceat(before.astype(np.int64), first_tokens), counts)
        text = np.where(before, columns, picture_start + max(self.grid) + columns)
        spread = np.stack([picture_start, picture_start + rows, picture_start + columns])
        return np.where(before | after, text, spread)

    def question_offset(self, spans: NDArray[np.int64]) -> int:
        """Return the end of the last unit."""
        return int(spans.sum())

    @torch.inference_mode()
    def question_embeds(self, token_ids: Sequence[int]) -> Tensor:
        """Return (len(token_ids), hidden)."""
        return self._decoder.embed(token_ids)

    def _ids_before(self, time_s: float) -> list[int]:
        text = f"<{time_s:.1f} seconds>"
        return [*self._tokenizer.encode(text, add_special_tokens=False), self._mark_ids[0]]

    def _unit(self, pixels: Tensor, time_s: float, features: Tensor, levels: Tensor) -> WholeUnit:
        before = self._decoder.embed(self._ids_before(time_s))
        after = self._decoder.embed(self._mark_ids[1:])
        embeds = torch.cat([before, features, after])
        deepstack = levels.new_zeros(len(levels), len(embeds), embeds.shape[1])
        deepstack[:, len(before) : -1] = levels
        return WholeUnit(
            pixels=pixels,
            embeds=embeds,
            cells=self.whole_cells(len(embeds)),
            position_span=len(before) + max(self.grid) + 1,
            deepstack=deepstack,
        )
