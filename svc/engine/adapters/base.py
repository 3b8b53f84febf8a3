"""What a family must bring: frames to units of embeddings, and its part of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor


class Adapter(Protocol):
    """A model family. Stateless: what one unit becomes depends on its own frames alone."""

    family: str
    frames_per_unit: int
    tokens_per_unit: int
    position_span: int
    """Positions that the full grid of a unit takes, whatever is dropped of it."""
    frame_height: int
    frame_width: int
    grid: tuple[int, int]
    """Rows and columns of a full unit's tokens, which lie in reading order."""
    video_token_id: int
    """The token that stands for the video in the checkpoint's template."""
    question_lead_count: int
    """Embeddings that `question_embeds` puts before the question segment's tokens."""

    def preprocess(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Return the pixels of whole units, (units, frames_per_unit, 3, height, width) float32.

        Args:
            frames: RGB, each (H, W, 3) uint8, in time order.

        Raises:
            ValueError: the frames are not whole units, or not such arrays.
        """
        ...

    def shown(self, pixels: Tensor) -> Tensor:
        """Return pixels of `preprocess` as values in [0, 1], whatever the normalisation."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of the units, (units, tokens_per_unit, hidden).

        Raises:
            RuntimeError: the model was loaded without its vision tower.
        """
        ...

    def cells(self) -> np.ndarray:
        """Return (tokens_per_unit, 2) uint16: row and column of each token of a full unit."""
        ...

    def local_positions(self) -> np.ndarray:
        """Return (tokens_per_unit,) int64: each token's position within [0, position_span)."""
        ...

    def question_embeds(self, token_ids: Sequence[int]) -> Tensor:
        """Return (question_lead_count + len(token_ids), hidden): the whole question segment."""
        ...
